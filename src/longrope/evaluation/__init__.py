"""Measure candidates side by side: perplexity, retrieval and benchmark tasks."""
