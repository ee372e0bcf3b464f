"""Staged extension: plans, run folders, fine-tuning and the pipeline that carries a plan out."""
