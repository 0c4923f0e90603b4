"""From sources to shard sets: spans, decoding, clips, tokens, Parquet."""
