"""Settings of a run, a file for each of its parts. Nothing here imports anything heavy."""
