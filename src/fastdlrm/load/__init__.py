"""Load generator: arrivals, query sizes, client, run, search; knows no model and no server."""
