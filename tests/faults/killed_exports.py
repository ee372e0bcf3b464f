"""Replace an export in forks that kill themselves at one change of the file system after the other; print their number.

A process of its own, as a fork of pytest would hold its threads. The output must be the old export or the new one, or
the old one stands beside it; the next export must leave the new one alone.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import families

import longrope as lr

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir"}
changes, last = 0, 0


def kill_at_last(event: str, args: tuple[Any, ...]) -> None:
    """Count the changes of this process; kill it before the last one."""
    global changes
    if event in CHANGES or (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR)):
        changes += 1
        if changes == last:
            os.kill(os.getpid(), signal.SIGKILL)


def export(folder: Path, scheme: str) -> dict[str, bytes]:
    """Export a random model with a scheme's factors; return its files."""
    model = families.build("llama")
    scaling = lr.scheme(scheme, lr.Rope.of(model), 256)
    options = lr.ExportOptions(check=False, overwrite=True)
    lr.export(model, families.tokenizer(), scaling, folder, options=options)
    return files(folder)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def main(folder: Path, step: int) -> None:
    global changes, last
    output, beside = folder / "out", folder / ".out.old"
    old = export(output, "pi")
    sys.addaudithook(kill_at_last)
    new = export(output, "yarn")
    count = changes
    assert old.keys() == new.keys()
    assert old != new
    assert export(output, "pi") == old
    kills, left = 0, set()
    for number in range(1, count + 1, step):
        pid = os.fork()
        if not pid:
            changes, last = 0, number
            export(output, "yarn")
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL, number
        kills += 1
        found = files(output if output.exists() else beside)
        assert found in (old, new), f"{number}: {sorted(found)}"
        left |= {path.name for path in folder.iterdir()}
        assert export(output, "yarn") == new, number
        assert [path.name for path in folder.iterdir()] == ["out"], number
        assert export(output, "pi") == old, number
    assert len(left) > 1, "no kill while the new export was written"
    print(kills)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
