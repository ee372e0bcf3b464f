"""Outputs that no other process works in: claimed before any work, and locked while it goes on."""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import os
import platform
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from longrope.errors import LongRopeError
from longrope.storage.atomic import cannot_write

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK = ".lock"
TAKEN = (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK)
_mine: set[Path] = set()  # the locks that this process has


def claim_output(path: Path, *, overwrite: bool, folder: bool = False, also: str = "") -> None:
    """Make sure, before any work, that an output may be written and no other process holds it.

    Args:
        path: of the output.
        overwrite: whether it may be there already.
        folder: whether it is a folder or a file; an empty folder may be there.
        also: one more remedy to name.

    Raises:
        LongRopeError: if it exists and may not, is a folder where a file is wanted or the other way round, is held, or
            its place cannot be written.
    """
    if folder and path / LOCK not in _mine:
        _refuse_held(path)
    try:
        if path.exists() and path.is_dir() != folder:
            raise LongRopeError(f"{path} is {'no' if folder else 'a'} folder; choose another output with -o")
        free = folder and path.exists() and all(one.name == LOCK for one in path.iterdir())
        if path.exists() and not overwrite and not free:
            raise LongRopeError(f"{path} exists; {also}replace it with --overwrite or choose another output with -o")
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path if path.is_dir() else path.parent).close()
    except OSError as error:
        raise cannot_write(path, error) from None


@contextlib.contextmanager
def locked(path: Path, *, folder: bool = True) -> Iterator[None]:
    """Keep other processes out of an output, by a lock of the operating system, which goes with the process.

    What a process that was killed left half written in the folder (``.NAME.PID.tmp``) is removed.

    Args:
        path: of the output; a folder is made, and taken away again if it is empty in the end.
        folder: whether it is a folder, which holds its lock as ``.lock``, or is replaced whole: ``.NAME.lock`` is then
            beside it.

    Raises:
        LongRopeError: if another process holds it, or its place cannot be written.
    """
    if folder and path.exists() and not path.is_dir():
        raise LongRopeError(f"{path} is no folder; choose another output with -o")
    lock, made = path / LOCK if folder else path.with_name(f".{path.name}{LOCK}"), folder and not path.exists()
    file = _take(path, lock)
    _mine.add(lock)
    try:
        for left in path.rglob(".*.tmp") if folder else ():
            with contextlib.suppress(OSError):  # a folder, or another user's
                left.unlink()
        yield
    finally:
        _mine.discard(lock)
        with contextlib.suppress(OSError):  # Windows removes no file that is open
            lock.unlink()
        os.close(file)
        with contextlib.suppress(OSError):
            if made:
                path.rmdir()


def _take(path: Path, lock: Path) -> int:
    """The open lock file, which tells others who holds it."""
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise cannot_write(path, error) from None
        try:
            taken = _locked(file)
        except OSError as error:  # such as NFS without its lock service
            warnings.warn(f"{path}: no lock here ({error.strerror}); let no other process work in it", stacklevel=4)
            break
        if taken and os.fstat(file).st_nlink:
            break
        os.close(file)
        if not taken:
            raise _in_use(path, lock)
    record = {"process": os.getpid(), "host": platform.node(), "since": f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S}"}
    with contextlib.suppress(OSError):  # a full disk has no room for who it is
        os.truncate(file, 0)
        os.lseek(file, 0, os.SEEK_SET)
        os.write(file, json.dumps(record).encode())
    return file


def _locked(file: int, *, shared: bool = False) -> bool:
    """Take the lock of an open file unless another has it; OSError where there are no locks."""
    try:
        if sys.platform == "win32":
            os.lseek(file, 1 << 20, os.SEEK_SET)  # beyond the text, which others could not read else
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in TAKEN:
            return False
        raise
    return True


def _refuse_held(path: Path) -> None:
    with contextlib.suppress(OSError):  # there is no lock, or what comes after this says why it cannot be had
        file = os.open(path / LOCK, os.O_RDWR)
        try:
            if not _locked(file, shared=True):
                raise _in_use(path, path / LOCK)
        finally:
            os.close(file)


def _in_use(path: Path, lock: Path) -> LongRopeError:
    who = "another process"
    with contextlib.suppress(OSError, ValueError):  # it is just beginning, or its disk is full
        who = "process {process} on {host} since {since}".format(**json.loads(lock.read_text(encoding="utf-8")))
    return LongRopeError(f"{path} is in use by {who}; wait until that ends, stop it, or choose another output with -o")
