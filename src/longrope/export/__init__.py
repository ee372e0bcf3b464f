"""Write checkpoints that other programs load with the same numbers."""
