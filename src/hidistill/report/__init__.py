"""Pictures, plots and one self-contained page out of a run folder."""
