"""Metrics of records: pure functions on what a task says of each held-out example, one module per kind.

A record has "prediction" and "reference". The scale is that of the library, or of the official script.
"""
