"""Verbs of the `toolkit` command, and the `main` of every recipe."""
