"""Checkpoints that others load with the same numbers."""
