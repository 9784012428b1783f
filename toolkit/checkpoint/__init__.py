"""Checkpoints that any topology can read, written so that a kill at any moment leaves a loadable one, and the export."""
