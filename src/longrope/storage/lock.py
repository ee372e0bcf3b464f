"""Claim output files and folders before a run, and lock them during it, against other processes."""

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
_own_locks: set[Path] = set()  # the locks that this process holds


def claim_output(path: Path, *, overwrite: bool, folder: bool = False, also: str = "") -> None:
    """Raise, before a run begins, unless its output can be written and no other process holds it.

    Args:
        path: Path of the output.
        overwrite: Whether the output may exist already.
        folder: Whether the output is a folder; an empty folder may exist already.
        also: Another remedy for the error message.

    Raises:
        LongRopeError: The output exists and must not, is a folder instead of a file or the reverse, is locked by
            another process, or cannot be written.
    """
    if folder and path / LOCK not in _own_locks and is_held(path):
        raise _in_use(path, path / LOCK)
    try:
        if path.exists() and path.is_dir() != folder:
            raise LongRopeError(f"{path} is {'not a' if folder else 'a'} folder; choose another output with -o")
        if path.exists() and not (folder or path.is_file()):  # the new file would take the place of /dev/stdout
            raise LongRopeError(f"{path} is a device or a pipe; choose another output with -o")
        empty = folder and path.exists() and all(entry.name == LOCK for entry in path.iterdir())
        if path.exists() and not overwrite and not empty:
            raise LongRopeError(f"{path} exists; {also}replace it with --overwrite or choose another output with -o")
        target = Path(os.path.realpath(path))  # a link stays one, and its target is written
        existing = next(ancestor for ancestor in (target, *target.parents) if ancestor.exists())
        tempfile.TemporaryFile(dir=target.parent if existing == target and not folder else existing).close()
    except OSError as error:
        raise cannot_write(path, error) from None


def refuse_staged_run(folder: Path) -> None:
    """Refuse the run folder of longrope extend as the output of something else.

    Raises:
        LongRopeError: If it is one.
    """
    if (folder / "plan.toml").exists():
        raise LongRopeError(f"{folder} is a run of longrope extend; choose another output with -o")


def refuse_other_files(folder: Path, journal: str, subject: str) -> None:
    """Refuse a folder that holds files, but not the journal of such a run.

    Args:
        folder: Path of the output.
        journal: Name of the journal.
        subject: Noun for the error message, such as a search.

    Raises:
        LongRopeError: If it is such a folder.
    """
    if folder.is_dir() and not (folder / journal).exists() and any(path.name != LOCK for path in folder.iterdir()):
        raise LongRopeError(f"{folder} does not hold {subject}. Choose another output with -o.")


@contextlib.contextmanager
def locked(path: Path, *, folder: bool = True) -> Iterator[None]:
    """Hold the operating system's lock on an output inside the block; it ends with the process at the latest.

    Temporary files of a killed process in the folder (``.NAME.PID.tmp``) are removed.

    Args:
        path: Path of the output; new folders on it are created, and removed at the end if they are empty.
        folder: Whether the output is a folder with its lock inside (``.lock``), or a path that is replaced as one,
            with its lock next to it (``.NAME.lock``).

    Raises:
        LongRopeError: Another process holds the lock, or the output cannot be written.
    """
    if folder and path.exists() and not path.is_dir():
        raise LongRopeError(f"{path} is not a folder; choose another output with -o")
    lock = path / LOCK if folder else path.parent / f".{path.name}{LOCK}"
    created = [parent for parent in lock.parents if not parent.exists()]
    file = _take(path, lock)
    _own_locks.add(lock)
    try:
        for temporary in path.rglob(".*.[0-9]*.tmp") if folder else ():
            with contextlib.suppress(OSError):  # a folder, or another user's
                temporary.unlink()
        yield
    finally:
        _own_locks.discard(lock)
        if sys.platform == "win32":  # which removes no file that is open
            os.close(file)
        with contextlib.suppress(OSError):  # elsewhere it is held until it is gone
            lock.unlink()
        if sys.platform != "win32":
            os.close(file)
        with contextlib.suppress(OSError):
            for parent in created:
                parent.rmdir()


@contextlib.contextmanager
def claimed(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield an output folder inside whose block no other process writes there; see `claim_output` and `locked`.

    Args:
        folder: Path of the folder.
        overwrite: Whether the folder may hold something already.

    Raises:
        LongRopeError: The folder cannot be taken, or is a run of longrope extend.
    """
    refuse_staged_run(folder)
    claim_output(folder, overwrite=overwrite, folder=True)
    with locked(folder):
        yield folder


def _take(path: Path, lock: Path) -> int:
    """Take the lock and return its open file, in which this process names itself."""
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise cannot_write(path, error) from None
        try:
            taken = _locked(file)
        except OSError as error:  # such as NFS without its lock service
            warnings.warn(
                f"{path}: no lock here ({error.strerror}); do not let another process write to it", stacklevel=4
            )
            break
        if taken and os.fstat(file).st_nlink:
            break
        os.close(file)
        if not taken:
            raise _in_use(path, lock)
    record = {"process": os.getpid(), "host": platform.node(), "since": f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S}"}
    with contextlib.suppress(OSError):  # a full disk has no room for the record
        os.truncate(file, 0)
        os.lseek(file, 0, os.SEEK_SET)
        os.write(file, json.dumps(record).encode())
    return file


def _locked(file: int, *, shared: bool = False) -> bool:
    """Take the lock of an open file and return True, or return False if another process has it.

    Raises:
        OSError: The file system has no locks.
    """
    try:
        if sys.platform == "win32":
            os.lseek(file, 1 << 20, os.SEEK_SET)  # beyond the text, so that others can read it
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in TAKEN:
            return False
        raise
    return True


def is_abandoned(folder: Path) -> bool:
    """Return whether a process that worked in a folder was killed: its lock file is there, and nobody holds it.

    It is False where that cannot be known, as on a file system without locks.

    Args:
        folder: Path of the folder.
    """
    return _held(folder) is False


def is_held(path: Path) -> bool:
    """Return whether a process works in a folder, and holds the lock inside it."""
    return bool(_held(path))


def _held(folder: Path) -> bool | None:
    """Return whether a process holds the lock in a folder; None without a lock file, or where that cannot be known."""
    with contextlib.suppress(OSError):  # a later step reports why it cannot be opened
        file = os.open(folder / LOCK, os.O_RDONLY)  # which may be all that a watcher is allowed
        try:
            return not _locked(file, shared=True)
        finally:
            os.close(file)
    return None


def _in_use(path: Path, lock: Path) -> LongRopeError:
    owner = "another process"
    with contextlib.suppress(OSError, ValueError):  # it has just started, or its disk is full
        owner = "process {process} on {host} since {since}".format(**json.loads(lock.read_text(encoding="utf-8")))
    return LongRopeError(
        f"{path} is in use by {owner}; wait until that ends, stop it, or choose another output with -o"
    )
