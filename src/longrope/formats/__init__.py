"""Readers for factors that other tools wrote."""
