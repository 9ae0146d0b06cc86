"""Tables, figures and claims, rebuilt from stored runs. Nothing here trains."""
