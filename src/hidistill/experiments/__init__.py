"""Experiments: questions put to grids of short runs over seeds, one file each."""
