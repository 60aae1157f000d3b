"""Runs of several processes: who they are, how they talk, and how their gradients become one."""
