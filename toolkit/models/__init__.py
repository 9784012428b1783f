"""Checkpoints that install by name, loading and building models, the loss head, what is asked of an architecture."""
