"""Factors that others wrote."""
