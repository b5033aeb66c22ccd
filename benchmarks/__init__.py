"""Measurements: declared cases, one runner, results as JSON, and a report of them."""
