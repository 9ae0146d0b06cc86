"""Network architectures and readers of released weights."""
