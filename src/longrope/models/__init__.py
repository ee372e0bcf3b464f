"""Load a model and put factors into it."""
