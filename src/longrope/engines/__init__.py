"""What each serving engine does with an exported checkpoint."""
