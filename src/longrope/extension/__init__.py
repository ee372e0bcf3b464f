"""Take a model further: find factors for a length."""
