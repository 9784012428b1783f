"""Recipe + target -> one DeepSpeed configuration; the strict schema of every section; the rules."""
