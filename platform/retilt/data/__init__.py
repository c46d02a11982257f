"""Events become shards, shards become batches."""
