"""One run from recipe to export: set-up, the loop, evaluation, what is written and what is shown."""
