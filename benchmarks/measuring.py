"""Measurements that several benchmarks share."""

from __future__ import annotations

from pathlib import Path


def status(field: str) -> int:
    """Return the bytes of a field of this process's status (Linux), such as ``VmHWM``, the peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def reset_peak() -> int:
    """Forget the peak of this process's memory so far, and return the bytes in use."""
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")
