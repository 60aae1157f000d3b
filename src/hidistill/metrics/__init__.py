"""Judges of pictures, one file each."""
