"""Runs started elsewhere: as tasks of Slurm."""
