"""Load a model, put factors into it, run it in pieces, generate with it."""
