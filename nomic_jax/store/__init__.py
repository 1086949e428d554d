"""Token stores: text tokenised once, in shards that are read at random."""
