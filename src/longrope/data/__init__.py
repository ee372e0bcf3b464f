"""Long documents: load, tokenize, cut, split."""
