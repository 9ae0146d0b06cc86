"""What an experiment may say, and how it is read."""
