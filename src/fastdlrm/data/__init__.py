"""Raw file -> dataset on disk -> batches."""
