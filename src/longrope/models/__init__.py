"""Load a model, replace its rotary embedding, and generate with it."""
