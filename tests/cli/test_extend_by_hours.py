"""`longrope extend MODEL --to L --hours H`: the plan that it chooses, the run, its progress, and what is refused."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import families
import pytest
from rich.console import Console
from transformers import AutoModelForCausalLM

from longrope.cli import extend_by_hours, job_progress
from longrope.cli.job_progress import JobProgress
from longrope.cli.progress import bar, parts_bar, search_bar
from longrope.cli.watch import watch
from longrope.cost.device_speed import DeviceSpeed
from longrope.errors import LongRopeError
from longrope.formats.load_factors import load_extension
from longrope.report.verdict import verdict_of
from longrope.scaling import Scaling
from longrope.search.loop import SearchProgress
from longrope.stages import plan_by_hours
from longrope.stages.plan import Plan, load_plan
from longrope.stages.plan_by_hours import Advice, bare_plan
from longrope.stages.plan_tables import Data, FinalEvaluation, Finetune, Stage
from longrope.stages.run_folder import StagedRun
from longrope.storage.lock import is_abandoned, locked

Refused = Callable[..., None]
Options = tuple[object, ...]


@pytest.fixture(scope="module", autouse=True)
def slow() -> Iterator[None]:
    """A machine of ten million FLOPs a second, whose measurement takes no time."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(plan_by_hours, "measure_device_speed", lambda *_, **__: DeviceSpeed(1e7, 1e7))
        yield


@pytest.fixture(scope="module")
def hours(texts: Path) -> Options:
    """Options of a run that takes seconds, as its texts are few and this machine is faster than the slow one."""
    return ("--to", 256, "--hours", 2, "--data", texts)


def test_a_plan_of_whole_sequences_is_described() -> None:
    plan = Plan(stages=(Stage(length=128, factors="yarn", finetune=Finetune(steps=3, batch=2)),))
    said = extend_by_hours.describe_kind(plan, "fine-tuning", "yarn")
    assert said == "fine-tuning of all weights with the factors of yarn, 3 steps of 2 windows of 128 tokens"


@pytest.fixture(scope="module")
def extended(
    cli, model: Path, hours: Options, slow: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, object]:
    """A finished run; not to be changed."""
    output = tmp_path_factory.mktemp("by-hours") / "run"
    log = output / "logs" / "run.log"
    return output, cli("extend", model, *hours, "-o", output, "--yes", "--log", log)


def test_a_model_is_extended(extended: tuple[Path, object]) -> None:
    output, result = extended
    assert result.code == 0, result.err
    assert "Plan: fine-tuning of all weights with the factors of" in result.err
    assert "One more hour would buy nothing without more texts" in result.err
    assert re.search(r"part 1 of 4, stage 1: fine-tune at 256: \d+%, loss", result.err)
    assert "part 4 of 4, export" in result.err
    results = json.loads((output / "results.json").read_text())
    assert list(results["perplexity"]) == ["original", "yarn", "extended"]
    assert results["perplexity"]["extended"][-1]["perplexity"] < results["perplexity"]["yarn"][-1]["perplexity"]
    sentences = verdict_of(output)
    assert len(sentences) >= 2
    assert all(sentence in result.out for sentence in sentences)
    assert "of what is hidden, in lines of a form that it was trained on" in sentences[0]
    page = (output / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "Which engines run it as made?" in page
    exported, extension = load_extension(output / "checkpoint"), load_extension(output / "extension.json")
    assert AutoModelForCausalLM.from_pretrained(output / "checkpoint").config.max_position_embeddings == 256
    assert exported.long.factors == pytest.approx(extension.long.factors)


def test_the_plan_is_in_the_folder_with_its_reasons(cli, extended: tuple[Path, object], model: Path, tmp_path) -> None:
    """It can be carried out as any plan, and costs what was said."""
    text = (extended[0] / "plan.toml").read_text()
    assert text.startswith("# longrope extend ")
    assert "# Plan: fine-tuning" in text
    plan = load_plan(extended[0] / "plan.toml")
    assert plan.stages[0].finetune is not None
    assert f"{plan.stages[0].finetune.steps} steps of 2 windows of 128 tokens" in text
    run = Path(shutil.copytree(extended[0], tmp_path / "run"))
    assert cli("extend", model, run / "plan.toml", "-o", run, "--resume").code == 0


def test_both_logs_have_the_lines_of_the_progress(extended: tuple[Path, object]) -> None:
    own = (extended[0] / "progress.log").read_text().splitlines()
    assert own == (extended[0] / "logs" / "run.log").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d (part \d of 4, |done in )", line) for line in own)
    assert len(own) >= 5


def test_a_second_run_into_the_folder(cli, refused: Refused, extended, model: Path, hours: Options) -> None:
    """It is refused with a hint, or continued without a plan; the folder stays as it is."""
    output, first = extended
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    refused(f"{output} exists; continue it with --resume", "extend", model, *hours, "-o", output)
    refused(f"to = 512: {output} is a run to 256 tokens", "extend", model, "--to", 512, "-o", output, "--resume")
    refused(f"{output} is a run of model {model}", "extend", "tiny", "-o", output, "--resume")
    command = ("extend", model, "-o", output, "--resume")
    refused(f"data = 'stdlib': {output} is a run on {hours[5]}; choose another output", *command, "--data", "stdlib")
    refused(f"text_key = 'body': {output} is a run on the key text", *command, "--text-key", "body")
    resumed = cli(*command, "--data", f"{hours[5]}/", "--text-key", "text", "--hours", 3)
    assert (resumed.code, resumed.out) == (0, first.out)
    assert f"hours = 3 changes nothing, as {output} keeps the plan that it began with" in resumed.err
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before


def test_an_interrupt_exports_the_best_so_far_and_the_run_resumes(
    cli, model: Path, hours: Options, tmp_path: Path, extended: tuple[Path, object]
) -> None:
    output = tmp_path / "run"
    interrupter = threading.Thread(target=interrupt_at, args=(output / "stage-1" / "training",))
    interrupter.start()
    result = cli("extend", model, *hours, "-o", output, "--export-on-interrupt")
    interrupter.join()
    assert result.code == 130, result
    assert f"Best so far: {output / 'checkpoint-so-far'}" in result.err
    assert "interrupted; with -o, it continues with --resume" in result.err
    assert "stopped in stage 1: fine-tune at 256 (KeyboardInterrupt)" in (output / "progress.log").read_text()
    original, so_far = (AutoModelForCausalLM.from_pretrained(path) for path in (model, output / "checkpoint-so-far"))
    assert so_far.config.rope_parameters["rope_type"] in ("yarn", "longrope")
    name = "model.layers.0.mlp.up_proj.weight"
    assert not original.get_parameter(name).equal(so_far.get_parameter(name))
    assert not (output / "checkpoint").exists()
    resumed = cli("extend", model, "-o", output, "--resume")
    assert resumed.code == 0, resumed.err
    assert (output / "checkpoint").exists()


def interrupt_at(training: Path, seconds: float = 60.0) -> None:
    """Press Ctrl-C once a training has a complete checkpoint."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not any(training.glob("checkpoint-*/complete")):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "to is missing: give --to LENGTH and --hours H, or a plan file"),
        (("--hours", 1), "to is missing"),
        (("--to", 256), "hours is missing: give --hours, such as --hours 3, or write a plan with longrope plan"),
        (("--to", 256, "--hours", 0), r"hours = 0\.0: not a time"),
        (("--to", 256, "--hours", "inf"), "hours = inf: not a time"),
        (("--to", "9z", "--hours", 1), "to = '9z'"),
        (("--to", 256, "--hours", 1, "--launch", "torchrun"), "launch = 'torchrun': hours choose a plan for one proc"),
        (("--to", 256, "--hours", 1, "--report-to", "nobody"), "report_to = 'nobody': the service is unknown"),
        (("demo", "--hours", 1, "--to", "2k"), "plan = 'demo' says all itself: drop --to, --hours, or edit the file"),
        (("demo", "--data", "stdlib"), "plan = 'demo' says all itself: drop --data"),
    ],
)
def test_options_that_do_not_fit(refused: Refused, options: Options, said: str, model: Path, tmp_path: Path) -> None:
    refused(said, "extend", model, *options, "-o", tmp_path / "run")


def test_a_length_within_the_window_is_refused_at_once(cli, model: Path, tmp_path: Path) -> None:
    result = cli("extend", model, "--to", 64, "--hours", 1, "-o", tmp_path / "run")
    assert (result.code, result.out) == (2, "")
    assert "error: to = 64 is not above the model's original length 64" in result.err
    assert "Measuring" not in result.err


def test_hours_that_are_too_few(refused: Refused, model: Path, hours: Options, tmp_path: Path) -> None:
    """The error says the least, and what it would give."""
    command = ("extend", model, "--to", 256, "--data", hours[5], "-o", tmp_path / "run")
    said = (
        r"hours = 0\.001: too short for 256 tokens here. The least is about [\d.]+ hours. "
        "That is enough for the factors of yarn, not trained, measured on one text"
    )
    refused(said, *command, "--hours", 0.001)


def advice_on(model: Path, data: Path, output: Path, length: int = 256, **fields: object) -> Advice:
    """The choice for a quarter of an hour on a machine of known speed."""
    plan = bare_plan(length, Data(source=str(data))).model_copy(update=fields)
    run = StagedRun(output, str(model), plan)
    speeds = dict.fromkeys(("float32", "bfloat16"), DeviceSpeed(1e9, 1e9))
    return plan_by_hours.plan_by_hours(run, 0.25, speeds)


@pytest.mark.filterwarnings("ignore::longrope.errors.CorpusWarning")
def test_the_plan_has_the_l0_of_the_command(model: Path, texts: Path, tmp_path: Path) -> None:
    plan = advice_on(model, texts, tmp_path, original_length=128).choice.plan
    assert (plan.original_length, plan.stages[0].finetune is not None) == (128, True)


@pytest.mark.filterwarnings("ignore::longrope.errors.CorpusWarning")
def test_one_book_is_trained_on(model: Path, texts: Path, tmp_path: Path) -> None:
    """A search for short factors would take it whole, and its windows are too few for the first choice's batch."""
    book = tmp_path / "book.txt"
    book.write_text(" ".join(path.read_text() for path in sorted(texts.iterdir())), encoding="utf-8")
    advice = advice_on(model, book, tmp_path / "run")
    plan = advice.choice.plan
    assert (advice.choice.kind, plan.recovery) == ("fine-tuning", None)
    assert list(advice.starts) == ["yarn", "ramp", "heuristic"]


def test_texts_that_are_too_short(refused: Refused, model: Path, hours: Options, tmp_path: Path) -> None:
    said = "data: 1 text of 100000 tokens is needed"
    refused(said, "extend", model, "--to", 100000, *hours[2:], "-o", tmp_path / "run")


def test_a_folder_without_text(refused: Refused, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff\xfe")
    command = ("extend", model, "--to", 256, "--hours", 1, "-o", tmp_path / "run")
    refused(f"data = '{folder}'", *command, "--data", folder)
    refused("data = '.*nowhere': not a file or folder", *command, "--data", tmp_path / "nowhere")


def test_models_that_cannot_be_extended(refused: Refused, no_rope: Path, hours: Options, tmp_path: Path) -> None:
    refused("gpt2", "extend", no_rope, *hours, "-o", tmp_path / "run")
    refused("nowhere': there is no such folder", "extend", tmp_path / "nowhere", *hours, "-o", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_with_other_files(refused: Refused, model: Path, hours: Options, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    refused(f"{tmp_path} exists and holds no run; choose another output", "extend", model, *hours, "-o", tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_log_that_cannot_be_written(refused: Refused, extended: tuple[Path, object], model: Path, tmp_path) -> None:
    (tmp_path / "file").touch()
    log = tmp_path / "file" / "log"
    refused(f"cannot write {log}", "extend", model, "-o", extended[0], "--resume", "--log", log)


def test_the_log_of_the_folder_gets_each_line_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "progress.log"
    assert job_progress.log_files(tmp_path, Path("progress.log")) == job_progress.log_files(tmp_path, None) == [own]
    assert job_progress.log_files(tmp_path, Path("other")) == [own, Path("other")]


def test_a_person_is_asked_once(
    cli, model: Path, hours: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A no leaves no run behind, so that other hours can be tried at once."""
    questions: list[str] = []

    def refuse(question: str, **_: object) -> bool:
        questions.append(question)
        return False

    monkeypatch.setattr(extend_by_hours.sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(extend_by_hours.typer, "confirm", refuse)
    result = cli("extend", model, *hours, "-o", tmp_path / "run")
    assert (result.code, result.out, questions) == (0, "", ["Go on?"])
    assert "One more hour would buy" in result.err
    assert not (tmp_path / "run").exists()


def test_the_line_of_a_job() -> None:
    """The time left is that of the shares at the pace so far; a resumed run does not count what was done before."""
    now = [0.0]
    job = JobProgress([("stage 1: search", 1.0), ("stage 1: fine-tune", 3.0)], clock=lambda: now[0])
    now[0] = 10.0
    job.update("stage 1: search at 128", 5, 10, "loss 2.000")
    assert job.line() == "part 1 of 2, stage 1: search at 128: 50%, loss 2.000; in all 12% after 10 s"
    now[0] = 30.0
    job.update("stage 1: fine-tune at 128", 1, 3, "")
    assert job.line() == "part 2 of 2, stage 1: fine-tune at 128: 33%; in all 50% after 30 s, about 27 s left"
    job.update("another step", 1, 2, "")
    assert job.line().startswith("another step: 50%; in all 50%")


def test_the_parts_of_a_job_weigh_by_their_time_where_the_device_was_measured() -> None:
    """A FLOP of training takes three times as long here, and so does its part of the run."""
    stage = Stage(length=128, factors="yarn", finetune=Finetune(steps=3, batch=2, dtype="float32"))
    plan = Plan(stages=(stage,), evaluation=FinalEvaluation(documents=2))
    config: Any = families.config("llama", max_position_embeddings=64)
    by_flops = dict(extend_by_hours.steps_of(plan, config, "float32"))
    speed = DeviceSpeed(1e7, 1e7, training=3.0)
    by_time = dict(extend_by_hours.steps_of(plan, config, "float32", {"float32": speed}))
    assert list(by_flops) == list(by_time) == ["stage 1: fine-tune", "measure", "export"]
    ratios = {name: cost / by_flops[name] * 1e7 for name, cost in by_time.items()}
    assert ratios["stage 1: fine-tune"] == pytest.approx(3.0)
    assert ratios["measure"] == pytest.approx(1.0)


def test_a_line_a_minute_and_at_each_step(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    log = tmp_path / "log"
    with job_progress.job_progress([("a", 1), ("b", 1)], quiet=True, logs=[log]) as on_progress:
        for step in ("a", "b"):
            for done in range(100):
                on_progress(step, done, 100, "")
    lines = [line.split(" ", 1)[1] for line in log.read_text().splitlines()]
    assert [line.split(":")[0] for line in lines] == ["part 1 of 2, a", "part 2 of 2, b", lines[-1]]
    assert lines[-1].startswith("done in ")
    assert capsys.readouterr().err == ""
    with pytest.raises(ZeroDivisionError):
        stop_after_two_lines()
    assert [line.split(";")[0] for line in capsys.readouterr().err.splitlines()] == [
        "part 1 of 1, a: 50%", "part 1 of 1, a: 100%", "stopped in a (ZeroDivisionError)"
    ]  # fmt: skip


def stop_after_two_lines() -> None:
    with job_progress.job_progress([("a", 1)], quiet=False, every=0.0) as on_progress:
        on_progress("a", 1, 2, "")
        on_progress("a", 2, 2, "")
        raise ZeroDivisionError


def test_outside_a_terminal_a_command_prints_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with parts_bar(quiet=False) as on_progress:
        for step in ("a", "b"):
            on_progress(step, 1, 2, "note")
            on_progress(step, 2, 2, "")
    with bar("c", 8, quiet=False) as update:
        update(4, "half")
    assert capsys.readouterr().err.splitlines() == [
        "a: 50%, note", "b: 50%, note", "c: 0%"
    ]  # fmt: skip


def test_a_search_says_when_it_chooses_the_winner(capsys: pytest.CaptureFixture[str]) -> None:
    """At once, not a minute after the line before."""
    best = Scaling([1.0, 2.0])
    with search_bar(100, quiet=False) as on_progress:
        on_progress(0, SearchProgress(0, 1, 98, best, 2.0, 1.0))
        on_progress(0, SearchProgress(0, 1, 98, best, 2.0, 1.0, is_over=True))
    assert capsys.readouterr().err.splitlines() == ["search: 0%", "choosing the winner on held-out documents: 0%"]


def test_the_line_of_a_command_without_parts() -> None:
    now = [0.0]
    job = JobProgress([], clock=lambda: now[0])
    job.update("search", 0, 10, "")
    now[0] = 10.0
    job.update("search", 4, 10, "")  # replayed from a journal
    now[0] = 30.0
    job.update("search", 5, 10, "loss 2.000")
    assert job.line() == "search: 50%, loss 2.000; after 30 s, about 1.7 min left"
    job.update("held-out", 0, 2, "")
    now[0] = 40.0
    assert job.line() == "held-out: 0%; after 10 s"


class Closed(io.StringIO):
    """The standard error of a process whose terminal is gone."""

    def write(self, text: str) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_run_outlives_its_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Closed())
    with job_progress.job_progress([("a", 1)], quiet=False, logs=[tmp_path / "log"]) as on_progress:
        on_progress("a", 1, 1, "")
    assert [line.split()[1] for line in (tmp_path / "log").read_text().splitlines()] == ["part", "done"]
    with bar("search", 1, quiet=False) as update:
        update(1, "")


def test_a_run_is_watched_until_it_is_done(
    cli, refused: Refused, extended: tuple[Path, object], tmp_path: Path
) -> None:
    result = cli("report", extended[0], "--watch")
    assert result.code == 0, result.err
    assert "part 4 of 4, export" in result.out
    assert "Perplexity by length" in result.out
    refused("watch: it shows one run in the terminal", "report", extended[0], extended[0], "--watch")
    refused("no run of longrope extend", "report", tmp_path, "--watch")


def test_a_watcher_says_that_a_run_was_killed(tmp_path: Path) -> None:
    """A process that holds the lock of the folder is killed with SIGKILL; before that, the watcher waits."""
    code = "import sys, time; from pathlib import Path; from longrope.storage.lock import locked\n"
    code += "with locked(Path(sys.argv[1])): print(flush=True); time.sleep(600)"
    (tmp_path / "progress.log").write_text("2026-01-01T00:00:00 part 1 of 1, a: 50%\n")
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert not is_abandoned(tmp_path)
        process.kill()
    with pytest.raises(LongRopeError, match="its process is gone, and the run is not finished"):
        watch(tmp_path, Console(file=io.StringIO()), every=0.01)


def test_a_watcher_waits_for_the_end(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    log, shown = tmp_path / "progress.log", io.StringIO()
    watcher = threading.Thread(target=watch, args=(tmp_path, Console(file=shown, width=100)), kwargs={"every": 0.01})
    watcher.start()
    for text, next_line in (("no step has begun yet", "part 1 of 1, a: 50%"), ("a: 50%", "done in 1 s")):
        end = time.monotonic() + 60
        while text not in shown.getvalue():
            assert time.monotonic() < end
            time.sleep(0.01)
        with log.open("a") as file:
            file.write(f"2026-01-01T00:00:00 {next_line}\n")
    watcher.join(60)
    assert shown.getvalue().endswith("done in 1 s\n")


def test_a_watcher_waits_where_a_run_goes_on_after_it_was_stopped(tmp_path: Path) -> None:
    """The log says that it stopped until the first step of the next process, which holds the lock already."""
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "progress.log").write_text("2026-01-01T00:00:00 stopped in a (KeyboardInterrupt)\n")
    shown = io.StringIO()
    watcher = threading.Thread(target=watch, args=(tmp_path, Console(file=shown)), kwargs={"every": 0.01})
    with locked(tmp_path):
        watcher.start()
        watcher.join(0.2)
        assert watcher.is_alive()
        with (tmp_path / "progress.log").open("a") as file:
            file.write("2026-01-01T00:00:01 done in 1 s\n")
    watcher.join(10)
    assert not watcher.is_alive()
    assert "done in 1 s" in shown.getvalue()


def test_a_damaged_run_is_not_resumed(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(LongRopeError, match=r"its run\.json is missing or damaged"):
        extend_by_hours.plan_of_run(tmp_path, resume=True)
