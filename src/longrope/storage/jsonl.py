"""Append-only files of JSON lines, from which work continues after any crash."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from longrope.errors import LongRopeError

VERSION = 1


class JsonlFile:
    """JSON lines after a first one with a version and the settings that decide what the others say.

    A line is with the operating system when `append` returns: a process that is killed loses none. Syncing each to the
    disk would cost some milliseconds, so only `close` does it: after a power failure the last ones may be missing, and
    what they said is computed again.

    Args:
        path: of the file.
        settings: JSON values only.
        of: what the file is the journal of.
        resume: continue the file if there is one; else it must not exist.

    Attributes:
        found: the lines that the file held; a last one that was cut by a crash is taken off the file.

    Raises:
        LongRopeError: if the file exists and ``resume`` is False, is no such file, was begun with other settings, or
            cannot be written.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any], *, of: str, resume: bool = False) -> None:
        self.path, self.of = Path(path), of
        self.found: list[dict[str, Any]] = []
        header = {"version": VERSION, "settings": json.loads(json.dumps(settings))}
        if self.path.exists() and not resume:
            raise LongRopeError(f"{self.path} exists; continue it with --resume or start anew with --overwrite")
        begun = self.path.exists() and self._restore(header)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab", buffering=0)
        except OSError as error:
            raise LongRopeError(f"cannot write {self.path}: {error.strerror}; choose another output with -o") from None
        if not begun:
            try:
                self.append(header)
            except LongRopeError:
                self.close()
                raise

    def append(self, line: Mapping[str, Any]) -> None:
        """Write a line, whole or not at all.

        Raises:
            LongRopeError: if it cannot be written.
        """
        data, end = json.dumps(line).encode() + b"\n", self._file.seek(0, os.SEEK_END)
        try:
            while data:  # a disk that is nearly full takes a part
                data = data[self._file.write(data) :]
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(end)
            raise LongRopeError(
                f"cannot write {self.path}: {error.strerror}; what is done is kept: make room, then --resume"
            ) from None

    def close(self) -> None:
        """Sync the file to the disk, and close it."""
        if not self._file.closed:
            with suppress(OSError):  # every line has been taken already
                os.fsync(self._file.fileno())
            self._file.close()

    def damaged(self) -> LongRopeError:
        """The error to raise where a line is not what it should be."""
        return LongRopeError(f"{self.path} is no journal of {self.of}; choose another output with -o")

    def _restore(self, header: Mapping[str, Any]) -> bool:
        try:
            data = self.path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            lines = [json.loads(line) for line in whole.splitlines()]
            if lines:
                self._check(lines[0], header)
            self.found = lines[1:]
            if whole != data:
                os.truncate(self.path, len(whole))
        except OSError as error:
            raise LongRopeError(
                f"{self.path} cannot be read: {error.strerror}; choose another output with -o"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise self.damaged() from None
        return bool(lines)

    def _check(self, found: Mapping[str, Any], header: Mapping[str, Any]) -> None:
        if found.get("version") != VERSION:
            raise LongRopeError(f"{self.path}: version = {found.get('version')!r} where {VERSION} is expected")
        old, new = found["settings"], header["settings"]
        changed = [
            f"{key} was {old.get(key)!r}, now {new.get(key)!r}"
            for key in {**old, **new}
            if old.get(key) != new.get(key)
        ]
        if changed:
            raise LongRopeError(
                f"{self.path} was begun with other settings: {'; '.join(changed)}; "
                "resume with the same ones, or start anew with --overwrite"
            )
