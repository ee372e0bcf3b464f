"""Long-context retrieval tasks: prompts of exact length in tokens, and their scoring."""
