"""One file per command; each has a function `command(argv)` that returns the exit status."""
