"""The training engine: loop, learning-rate schedule, checkpoints."""
