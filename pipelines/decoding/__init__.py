"""Sources to frames, in child processes that a file may hang or crash."""
