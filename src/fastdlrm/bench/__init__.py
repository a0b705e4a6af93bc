"""Benchmarks: measurement, host fingerprint, what operators cost, comparison of results."""
