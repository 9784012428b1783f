"""Drafts of recipes for a user's own model and data: both are looked at, and every choice has a reason."""
