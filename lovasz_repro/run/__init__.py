"""The pipeline of a run, from an experiment file to its stored scores."""
