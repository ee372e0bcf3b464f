"""Documents, their split and tokenization, training windows, and texts with weighted tokens."""
