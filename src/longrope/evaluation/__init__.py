"""Perplexity by length, and what a search minimises."""
