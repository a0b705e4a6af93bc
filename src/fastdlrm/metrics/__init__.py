"""Mergeable states: update, merge, compute."""
