"""Append-only journals of JSON lines, from which a run continues after any crash."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from longrope.errors import LongRopeError

VERSION = 1


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings that a journal was begun with; empty if it does not exist or does not say."""
    try:
        with path.open(encoding="utf-8") as file:
            return dict(json.loads(file.readline())["settings"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


class JsonlFile:
    """A journal of JSON lines; the first line holds a version and the settings that decide the other lines.

    `append` flushes each line to the operating system, so killing the process loses nothing. Only `close` syncs the
    file to the disk, because a sync takes some milliseconds. After a power failure the last lines may be missing, and
    the run computes them again.

    Args:
        path: Path of the file.
        settings: Settings of the run, JSON values only.
        subject: Noun for the error messages: the file is the journal of a search, an evaluation, …
        resume: Whether to continue an existing file; without it, the file must not exist.

    Attributes:
        lines: Lines of the existing file, without a last line that a crash cut.

    Raises:
        LongRopeError: The file exists and ``resume`` is False, is not such a journal, was written with other settings,
            or cannot be written.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any], *, subject: str, resume: bool = False) -> None:
        self.path, self.subject = Path(path), subject
        self.lines: list[dict[str, Any]] = []
        header = {"version": VERSION, "settings": json.loads(json.dumps(settings))}
        if self.path.exists() and not resume:
            raise LongRopeError(f"{self.path} exists; continue it with --resume or replace it with --overwrite")
        continued = self.path.exists() and self._restore(header)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab", buffering=0)
        except OSError as error:
            raise LongRopeError(f"cannot write {self.path}: {error.strerror}; choose another output with -o") from None
        if not continued:
            try:
                self.append(header)
            except LongRopeError:
                self.close()
                raise

    def append(self, line: Mapping[str, Any]) -> None:
        """Write a line, completely or not at all.

        Raises:
            LongRopeError: The line cannot be written.
        """
        data, end = json.dumps(line).encode() + b"\n", self._file.seek(0, os.SEEK_END)
        try:
            while data:  # a nearly full disk takes only some of it
                data = data[self._file.write(data) :]
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(end)
            raise LongRopeError(
                f"cannot write {self.path}: {error.strerror}; the finished lines are kept: make room, then --resume"
            ) from None

    def close(self) -> None:
        """Sync the file to the disk and close it."""
        if not self._file.closed:
            with suppress(OSError):  # the system has every line already
                os.fsync(self._file.fileno())
            self._file.close()

    def damaged(self) -> LongRopeError:
        """Return the error for a line that does not belong to such a journal."""
        return LongRopeError(f"{self.path} is not a journal of {self.subject}; choose another output with -o")

    def _restore(self, header: Mapping[str, Any]) -> bool:
        try:
            data = self.path.read_bytes()
            complete = data[: data.rfind(b"\n") + 1]
            lines = [json.loads(line) for line in complete.splitlines()]
            if lines:
                self._check(lines[0], header)
            self.lines = lines[1:]
            if complete != data:
                os.truncate(self.path, len(complete))
        except OSError as error:
            raise LongRopeError(
                f"{self.path} cannot be read: {error.strerror}; choose another output with -o"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise self.damaged() from None
        return bool(lines)

    def _check(self, old_header: Mapping[str, Any], header: Mapping[str, Any]) -> None:
        if old_header.get("version") != VERSION:
            raise LongRopeError(f"{self.path}: version = {old_header.get('version')!r} where {VERSION} is expected")
        old, new = old_header["settings"], header["settings"]
        changed = [
            f"{key} was {old.get(key)!r}, now {new.get(key)!r}"
            for key in {**old, **new}
            if old.get(key) != new.get(key)
        ]
        if changed:
            raise LongRopeError(
                f"{self.path} was written with other settings: {'; '.join(changed)}; "
                "resume with the same ones, or replace it with --overwrite"
            )
