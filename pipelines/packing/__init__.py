"""Clips to a sealed shard set."""
