"""Data sets and the transforms and samplers that feed them to training."""
