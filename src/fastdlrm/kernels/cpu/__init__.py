"""Implementations for the CPU, compiled by Numba when they first run."""
