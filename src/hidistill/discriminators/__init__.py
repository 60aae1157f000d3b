"""Heads on a teacher's features, one file each."""
