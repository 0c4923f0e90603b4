"""Shard sets to batches: a global sequence that depends on seed and step alone."""
