"""Stages, the loop that runs them, and the run folder in which a run can be taken up again."""
