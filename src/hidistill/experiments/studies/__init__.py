"""The experiments, one file each: `STUDY` says what it asks and what is run."""
