"""Checkpoints: committed whole or absent, hashed, copied, kept and pruned."""
