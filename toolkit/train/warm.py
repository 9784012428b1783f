"""Imported last by the server of `ranks`: work that every forked rank would otherwise do again."""

import gc

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

get_checkpoint_conversion_mapping("llama")
# A rank's garbage collections would visit, and so copy, every object it shares with the server.
gc.collect()
gc.freeze()
