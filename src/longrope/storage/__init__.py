"""Whole-file writes, append-only JSONL journals, and locks on output folders."""
