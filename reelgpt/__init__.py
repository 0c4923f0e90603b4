"""The front door: one file a command, each composing the floors below."""
