"""The decoding child: a program of its own that imports nothing else of the house."""
