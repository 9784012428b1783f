"""Sources -> tokens -> packs -> shards -> resumable batches."""
