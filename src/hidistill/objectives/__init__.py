"""Losses, one file each: what turns a batch into a loss per sample."""
