"""Where a grid runs: in this process, on ranks, side by side, as tasks of Slurm."""
