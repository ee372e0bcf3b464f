"""The one exception that longrope raises on purpose."""

from __future__ import annotations


class LongRopeError(Exception):
    """Input that longrope cannot use; the message names the field, the value and the remedy.

    The command line prints the message and exits with code 2.
    """
