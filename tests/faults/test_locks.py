"""Two processes never work in one folder."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from longrope.errors import LongRopeError
from longrope.stages import pipeline
from longrope.stages.plan import Plan
from longrope.stages.plan_tables import Data, Finetune, Stage
from longrope.stages.run_folder import StagedRun
from longrope.storage import lock
from longrope.storage.lock import claim_output, is_abandoned, is_held, locked

PLAN = Plan(stages=(Stage(length=512, factors="pi", finetune=Finetune(steps=1)),), data=Data(source="."))


def said(pid: int) -> str:
    return rf"in use by process {pid} on {platform.node()} since 20.*-o"


def test_a_folder_that_is_held_is_refused_and_not_touched(holder, below, tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    (path / ".best.json.17.tmp").write_text("half")
    with holder(path) as process:
        (path / ".new.json.18.tmp").write_text("being written")
        before = below(tmp_path)
        for overwrite in (False, True):
            with pytest.raises(LongRopeError, match=said(process.pid)):
                claim_output(path, overwrite=overwrite, folder=True)
        with pytest.raises(LongRopeError, match=said(process.pid)), locked(path):
            pytest.fail("held twice")
        assert below(tmp_path) == before
        assert set(before) == {"run", "run/.lock", "run/.new.json.18.tmp"}  # what was left before is swept
        process.kill()
        process.wait()
        assert (path / ".lock").exists()
        with locked(path):
            claim_output(path, overwrite=True, folder=True)  # by the process that holds it
            assert set(below(path)) == {".lock"}
    assert below(tmp_path) == {"run": None}
    claim_output(path, overwrite=False, folder=True)


def test_a_lock_that_was_left_makes_no_folder_full(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("")
    claim_output(tmp_path, overwrite=False, folder=True)


def test_the_lock_goes_though_a_child_lives(holder, tmp_path: Path) -> None:
    script = "import subprocess; from longrope.storage.lock import locked; from pathlib import Path\n"
    script += "with locked(Path('run')):\n"
    script += " print(subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL).pid, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        with pytest.raises(LongRopeError, match=said(process.pid)), locked(tmp_path / "run"):
            pass
        process.kill()
    with locked(tmp_path / "run"):
        os.kill(child, 9)


def test_a_new_folder_is_taken_away_again_unless_it_holds_something(tmp_path: Path) -> None:
    for name, kept in (("empty", False), ("full", True)):
        with locked(tmp_path / name):
            if kept:
                (tmp_path / name / "file").write_text("")
        assert (tmp_path / name).exists() == kept
    (tmp_path / "mine").mkdir()
    for name in ("mine", "mine/deep/er"):
        with locked(tmp_path / name):
            pass
        assert not any((tmp_path / "mine").iterdir())


def test_a_file_or_a_folder_that_is_replaced_has_its_lock_beside_it(holder, below, tmp_path: Path) -> None:
    with holder(tmp_path / "out", folder=False) as process:
        assert set(below(tmp_path)) == {".out.lock"}
        with pytest.raises(LongRopeError, match=said(process.pid)), locked(tmp_path / "out", folder=False):
            pass
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait() == 0
    assert not below(tmp_path)


def test_a_file_system_without_locks_is_warned_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.warns(UserWarning, match=r"run: no lock here \(No locks available\)"), locked(tmp_path / "run"):
        claim_output(tmp_path / "run", overwrite=True, folder=True)


def test_a_run_on_a_file_system_without_locks_is_not_taken_for_killed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.warns(UserWarning, match="no lock here"), locked(tmp_path):
        assert (is_held(tmp_path), is_abandoned(tmp_path)) == (False, False)


def test_a_reader_that_may_not_write_sees_that_a_folder_is_held(
    holder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As the folder of another user, or one that is mounted to be read."""
    real = os.open

    def open_to_read(path: str, flags: int, *mode: int, **options: int) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, flags, *mode, **options)

    with holder(tmp_path):
        monkeypatch.setattr(os, "open", open_to_read)
        assert (is_held(tmp_path), is_abandoned(tmp_path)) == (True, False)
        monkeypatch.undo()


def test_temporary_files_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in (".mine.tmp", "deep/.best.json.17.tmp"):
        (tmp_path / name).touch()
    with locked(tmp_path):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine.tmp", "deep"]
    assert not list((tmp_path / "deep").iterdir())


def test_a_lock_whose_file_its_holder_just_removed_is_taken_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path, calls, real = tmp_path / ".lock", [], lock._locked

    def late(file: int, **given: bool) -> bool:
        if not calls:
            path.unlink()
        calls.append(file)
        return real(file, **given)

    monkeypatch.setattr(lock, "_locked", late)
    with locked(tmp_path):
        assert len(calls) == 2
        assert os.path.samestat(os.fstat(calls[1]), path.stat())


def test_where_no_folder_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(LongRopeError, match=r"(cannot write .*file|file is not a folder).*-o"), locked(path):
            pass


@pytest.mark.parametrize("name", ["search", "eval", "extend", "demo"])
def test_commands_refuse_a_run_of_another_process(name: str, command, holder, below, tmp_path: Path) -> None:
    path = tmp_path / "run"
    words = {"search": ["tiny", "-l", 512], "eval": ["tiny", "--lengths", 512], "extend": ["tiny", "demo"], "demo": []}
    more = [[], ["--resume"]] + [["--overwrite"]] * (name in ("search", "eval")) if name != "demo" else [[]]
    with holder(path) as process:
        before = below(tmp_path)
        for options in more:
            code, error = command(name, *words[name], "-o", path, *options)
            assert code == 2
            assert re.search(f"^error: .*{said(process.pid)}", error), error
            assert below(tmp_path) == before


def test_export_refuses_what_another_process_writes(command, holder, below, tmp_path: Path) -> None:
    (tmp_path / "factors.csv").write_text("1\n" * 31 + "2\n")
    with holder(tmp_path / "out", folder=False) as process:
        before = below(tmp_path)
        code, error = command("scale", "tiny", "--scheme", "pi", "-l", 512, "-o", tmp_path / "factors.json")
        assert code == 0, error
        code, error = command("export", "tiny", "--factors", tmp_path / "factors.json", "-o", tmp_path / "out")
        assert code == 2
        assert re.search(said(process.pid), error), error
        (tmp_path / "factors.json").unlink()
        assert below(tmp_path) == before


def test_one_process_of_a_launch_holds_the_stage(holder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run, trained = StagedRun(tmp_path, "tiny", PLAN), []
    monkeypatch.setattr(pipeline, "_finetune_stage", lambda *args: trained.append(args))
    with holder(run.stage_folder(1)) as process:
        with pytest.raises(LongRopeError, match=said(process.pid)):
            pipeline.finetune_stage(run, 1)
        assert not trained
        monkeypatch.setenv("RANK", "1")
        pipeline.finetune_stage(run, 1)
        assert trained == [(run, 1)]


@pytest.mark.slow
def test_killed_while_another_waits_to_resume(command, tmp_path: Path) -> None:
    words = ["search", "tiny", "-l", "300", "--dtype", "float32", "--needles", "0", "--search-documents", "1"]
    words += ["--held-out-documents", "1", "--budget", "9000", "-o", str(tmp_path / "run")]
    with subprocess.Popen([sys.executable, "-m", "longrope", *words], stderr=subprocess.DEVNULL) as process:
        journal, deadline = tmp_path / "run" / "search-0.jsonl", time.monotonic() + 120
        while not journal.exists() or journal.read_bytes().count(b"\n") < 4:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        code, error = command(*words, "--resume")
        assert process.poll() is None
        assert code == 2
        assert re.search(said(process.pid), error), error
        process.kill()
        process.wait()
    assert command(*words, "--resume")[0] == 0
    assert not list(tmp_path.rglob(".*"))
