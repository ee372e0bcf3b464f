"""Long documents, their tokens, training windows, and texts that hide what is asked for."""
