"""The benchmark: its commands, files and numbers, as far as they need no GPU."""
