"""Perplexity, retrieval and tasks side by side; what a search minimises; what a pass costs."""
