"""Tokens of strings that are joined to a longer text."""

from longrope.data.tokenize import encode_within

__all__ = ["encode_within"]
