"""`longrope extend` and `longrope finetune`: a whole plan, and what is refused."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from longrope.errors import LongRopeError
from longrope.export import huggingface, verify
from longrope.formats.load_factors import load_factors
from longrope.scaling import Scaling
from longrope.stages import plan_cost

PLAN = """
version = 1
attention = "none"
export = "dual"

[[stages]]
length = 128
[stages.search]
documents = 1
population = 4
[stages.finetune]
steps = 2
batch = 2
rate = 1e-3

[[stages]]
length = 256
factors = "yarn"

[recovery.search]
documents = 1
population = 4

[data]
source = "SOURCE"

[evaluation]
documents = 1
schemes = ["yarn"]
"""
Refused = Callable[..., None]


@pytest.fixture(scope="module")
def plan(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Search and fine-tune at 128, YaRN at 256, recover."""
    path = tmp_path_factory.mktemp("plans") / "plan.toml"
    path.write_text(PLAN.replace("SOURCE", str(texts)))
    return path


@pytest.fixture(scope="module")
def extended(cli, model: Path, plan: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, object]:
    """A finished run; not to be changed."""
    output = tmp_path_factory.mktemp("extended") / "run"
    return output, cli("extend", model, plan, "-o", output)


@pytest.fixture
def run(extended: tuple[Path, object], tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(extended[0], tmp_path / "run"))


def changed(plan: Path, folder: Path, *pairs: tuple[str, str]) -> Path:
    """A copy of the plan with some text replaced."""
    text = plan.read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new, 1)
    path = folder / "changed.toml"
    path.write_text(text)
    return path


def test_a_plan_is_carried_out(extended: tuple[Path, object], model: Path) -> None:
    output, result = extended
    assert result.code == 0, result.err
    assert "perplexity ± standard error over documents" in result.out
    for row in ("original", "yarn", "128 searched", "128 fine-tuned", "256 yarn", "extended", "256"):
        assert row in result.out
    assert re.search(r"at 64 tokens, extended: [+-]\d+\.\d% perplexity", result.out)
    assert f"Factors: {output / 'extension.json'}" in result.out
    assert f"Checkpoint: {output / 'checkpoint'}" in result.out
    assert "stage 1: search at" in result.err
    extension = load_factors(output / "extension.json")
    loaded = AutoModelForCausalLM.from_pretrained(output / "checkpoint")
    parameters = loaded.config.rope_parameters
    assert parameters["rope_type"] == "longrope"
    assert parameters["long_factor"] == list(extension.long.factors)
    assert parameters["short_factor"] == list(extension.short.factors)
    assert loaded.config.max_position_embeddings == 256
    assert json.loads((output / "run.json").read_text())["model"] == str(model)


def test_the_exported_weights_are_those_of_the_last_stage(extended: tuple[Path, object]) -> None:
    one, other = (
        AutoModelForCausalLM.from_pretrained(extended[0] / name).state_dict()
        for name in ("stage-1/model", "checkpoint")
    )
    assert one.keys() == other.keys()
    assert all(one[name].equal(other[name]) for name in one)


def test_resuming_a_finished_run_prints_the_same(cli, extended, model: Path, plan: Path, run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    result = cli("extend", model, plan, "-o", run, "--resume")
    assert result.code == 0, result.err
    assert result.out == extended[1].out.replace(str(extended[0]), str(run))
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_json(cli, model: Path, plan: Path, run: Path) -> None:
    result = cli("extend", model, plan, "-o", run, "--resume", "--json")
    assert result.code == 0, result.err
    assert result.err == ""
    assert result.json == json.loads((run / "results.json").read_text())
    assert list(result.json["perplexity"]) == [
        "original", "yarn", "128 searched", "128 fine-tuned", "256 yarn", "extended"
    ]  # fmt: skip


def test_without_results(cli, model: Path, plan: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.toml"
    source = re.search('source = ".*"', plan.read_text())
    assert source is not None
    short.write_text(
        "version = 1\nexport = 'none'\n[[stages]]\nlength = 128\nfactors = 'ntk'\n"
        f"[data]\n{source[0]}\n[evaluation]\nlengths = []\n"
    )
    result = cli("extend", model, short, "-o", tmp_path / "run")
    assert result.code == 0, result.err
    assert result.out.split() == ["Factors:", str(tmp_path / "run" / "extension.json")]
    assert cli("extend", model, short, "-o", tmp_path / "run", "--resume", "--json").json == {}


@pytest.mark.parametrize("command", ["export", "generate"])
@pytest.mark.parametrize("file", ["", "extension.json"])
def test_factors_of_a_training_need_its_weights(
    cli, refused: Refused, model: Path, run: Path, tmp_path: Path, command: str, file: str
) -> None:
    """The weights before it would be exported without a word, and the comparison would not notice."""
    factors = run / file
    said = rf"factors = '{factors}' with {model}: this run has trained .* Give {run}/stage-1/model as the model"
    words = ("-o", tmp_path / "out") if command == "export" else ("text", "--max-new-tokens", 1)
    refused(said, command, model, *words, "--factors", factors)
    if command == "export":
        result = cli("export", run / "stage-1" / "model", "--factors", factors, *words)
        assert result.code == 0, result.err


def test_an_adapter_is_switched_where_the_output_says(cli, model: Path, plan: Path, tmp_path: Path) -> None:
    source = re.search('source = ".*"', plan.read_text())
    assert source is not None
    adapter, run = tmp_path / "adapter.toml", tmp_path / "run"
    adapter.write_text(
        "version = 1\n[[stages]]\nlength = 128\nfactors = 'yarn'\n"
        "[stages.finetune]\nsteps = 2\nbatch = 2\nrate = 1e-2\nlora = 2\nmerge = false\n"
        "[[stages]]\nlength = 160\nfactors = 'yarn'\n"  # has no weights of its own
        f"[data]\n{source[0]}\n[evaluation]\nlengths = []\n"
    )
    result = cli("extend", model, adapter, "-o", run)
    assert result.code == 0, result.err
    *_, checkpoint, everywhere, switched = result.out.splitlines()
    assert checkpoint == f"Checkpoint: {run / 'checkpoint'}"
    assert everywhere == "It has the adapter and the long factors at every length."
    chat = re.fullmatch("longrope chat (.+) uses them beyond L0 only, as in the measurement.", switched)
    assert chat is not None
    for prompt, within in (("a line", True), ("a line " * 15, False)):
        words, more = chat[1].split(), ("--max-new-tokens", 8)
        here = cli("generate", words[0], prompt, *words[1:], *more)
        there = cli("generate", run / "checkpoint", prompt, *more)
        assert ("short factors (policy pin" in here.err, here.out != there.out) == (within, within)


def test_the_folder_by_default(cli, model: Path, plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    quick = changed(plan, tmp_path, ('length = 256\nfactors = "yarn"', 'length = 256\nfactors = "pi"'))
    text = quick.read_text()
    quick.write_text(text[: text.index("[recovery")] + text[text.index("[data]") :])
    text = quick.read_text().replace('export = "dual"', 'export = "none"')
    quick.write_text(re.sub(r"\[\[stages\]\]\nlength = 128.*?(?=\[\[stages)", "", text, flags=re.DOTALL))
    assert cli("extend", model, quick).code == 0
    assert (tmp_path / f"{model.name}-256" / "extension.json").exists()


BAD_PLANS = {
    "unknown key": (
        ("steps = 2", "step = 2"),
        r"stages\[0\]\.finetune\.step is not a key .* tokens",
    ),
    "out of order": (("length = 128", "length = 512"), r"stages\[1\]\.length = 256 is not above stages\[0\]\.length"),
    "a bad value": (("batch = 2", "batch = 0"), r"stages\[0\]\.finetune\.batch = 0 must be 1 or more"),
    "no method": (("population = 4", 'method = "x"'), r"stages\[0\]\.search\.method = 'x' is unknown; choose one of"),
    "no TOML": (("[data]", "[data"), "is not a TOML file"),
    "another version": (("version = 1", "version = 2"), "version = 2, but this longrope reads 1: upgrade"),
    "too long a window": (("population = 4", "population = 4\nwindow = 2048"), "window = 2048: above length = 128"),
    "too many tokens": (
        ("steps = 2", "tokens = 100000000"),
        r"data: .* sequences of 128 tokens are to be trained on, .*Give more documents \(data.train\), fewer finetune",
    ),
    "too many documents": (("documents = 1", "documents = 99"), "data: 99 texts of 128 tokens are needed"),
    "too long": (("length = 256", "length = 100000"), "data: 1 text of 100000 tokens is needed"),
    "too short": (("length = 128", "length = 64"), r"stages\[0\]\.length = 64 is not above the model's original"),
    "too small": (("population = 4", "population = 3"), "population = 3: too small. Use at least 4."),
    "too little": (("population = 4", "budget = 100"), "budget = 100: one step of this search takes"),
    "no such data": (("source = ", 'source = "nowhere" #'), "data = 'nowhere': not a file or folder"),
    "no such export": (
        ('attention = "none"', 'attention = "su"'),
        r"attention_factor = 1\.08012 \(short\) and 1\.1547 \(long\): transformers applies one factor to both",
    ),
}


@pytest.mark.parametrize("name", BAD_PLANS)
def test_plans_that_are_refused(name: str, cli, model: Path, plan: Path, tmp_path: Path) -> None:
    pair, said = BAD_PLANS[name]
    result = cli("extend", model, changed(plan, tmp_path, pair), "-o", tmp_path / "run")
    assert (result.code, result.out) == (2, ""), result
    assert re.search(f"error: .*{said}", result.err), result.err
    assert not (tmp_path / "run" / "run.json").exists()


def test_an_export_that_cannot_be_compared(
    cli, model: Path, plan: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page is there, and the error names the command that does not compare, after which the run goes on."""
    shutil.rmtree(run / "checkpoint")
    (run / "report.html").unlink()

    def fail(*_: object, **__: object) -> None:
        raise LongRopeError(f"no memory. {verify.REMEDY}")

    with monkeypatch.context() as patched:
        patched.setattr(huggingface, "export_huggingface", fail)
        result = cli("extend", model, plan, "-o", run, "--resume")
    assert result.code == 2
    assert (run / "report.html").exists()
    command = re.search("Export without the comparison: longrope (.+); then continue with --resume", result.err)
    assert command is not None
    assert cli(*command[1].split()).code == 0
    assert cli("extend", model, plan, "-o", run, "--resume").code == 0


def test_an_export_that_is_not_compared_names_the_command(
    cli, model: Path, plan: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(run / "checkpoint")
    monkeypatch.setattr(verify, "fits_copy", lambda _: False)
    result = cli("extend", model, plan, "-o", run, "--resume")
    command = re.search("Run longrope (.+) elsewhere", result.err)
    assert command is not None
    monkeypatch.undo()
    assert cli(*command[1].split()).code == 0


def test_a_full_disk_does_not_hide_an_interrupt(
    cli, model: Path, plan: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    def fill(_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("longrope.cli.extend_output.export", interrupt)
    monkeypatch.setattr("longrope.cli.extend_output.export_so_far", fill)
    result = cli("extend", model, plan, "-o", run, "--resume", "--export-on-interrupt")
    assert result.code == 130
    assert "Note: the best so far is not exported: [Errno 28] No space left on device" in result.err


def test_an_export_that_no_config_can_hold_is_refused_in_time(
    refused: Refused, model: Path, plan: Path, tmp_path
) -> None:
    """Without recovery the short factors have attention factor 1."""
    text = plan.read_text().replace('attention = "none"', 'attention = "yarn"')
    path = tmp_path / "plan.toml"
    path.write_text(text[: text.index("[recovery")] + text[text.index("[data]") :])
    refused(r"attention_factor = 1 \(short\) and 1\.13863 \(long\)", "extend", model, path, "-o", tmp_path / "run")


def test_plans_and_models_that_are_not_there(refused: Refused, model: Path, plan: Path, tmp_path: Path) -> None:
    said = r"plan = '.*x.toml' cannot be read: No such file or directory; give a file, or one of .*tiny"
    refused(said, "extend", model, tmp_path / "x.toml", "-o", tmp_path / "run")
    refused("plan = '2K': a length, not a plan. Give it with --to 2K, and --hours H", "extend", model, "2K")
    refused(
        "model = '.*nowhere': there is no such folder", "extend", tmp_path / "nowhere", plan, "-o", tmp_path / "run"
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--launch", "no-such-program -x"), "launch = 'no-such-program': there is no such program"),
        (
            ("--report-to", "nobody"),
            "report_to = 'nobody': the service is unknown or not installed. Choose one of .*none",
        ),
        (("--device", "cuda:1"), "device = 'cuda:1': fine-tuning takes the first device that it sees"),
        (("--dtype", "bogus"), "dtype = 'bogus' is unknown; choose one of float32, bfloat16, float16, auto"),
    ],
)
def test_what_is_missing_is_said_before_any_work(
    refused: Refused, options: tuple[str, ...], said: str, model: Path, plan: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if "cuda:1" in options:
        monkeypatch.setattr("longrope.models.load.check_device", lambda _: None)  # it finds none here
    refused(said, "extend", model, plan, "-o", tmp_path / "run", *options)


def test_no_room(refused: Refused, model: Path, plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_cost, "free_memory", lambda _: 2**20)
    said = r"stage 1: length = 128 takes about [\d.]+ GiB where cpu has 0.0 GiB free: a window, lora"
    refused(said, "extend", model, plan, "-o", tmp_path / "run")


def test_a_package_that_is_missing_is_said_before_any_work(
    refused: Refused, model: Path, plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = changed(plan, tmp_path, ("steps = 2", "steps = 2\nlora = 4"))
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "peft", raising=False)
    said = r'stages\[0\]\.finetune\.lora = 4 needs the package peft: pip install "longrope\[lora\]"'
    refused(said, "extend", model, path, "-o", tmp_path / "run")


def test_a_model_without_rope(refused: Refused, no_rope: Path, plan: Path, tmp_path: Path) -> None:
    refused("gpt2", "extend", no_rope, plan, "-o", tmp_path / "run")


def test_runs_of_others(refused: Refused, model: Path, plan: Path, run: Path, tmp_path: Path) -> None:
    other = changed(plan, tmp_path, ("rate = 1e-3", "rate = 1e-4"))
    said = rf"{run} is the run of another plan, {run}/plan.toml; resume with that one, or choose another output with -o"
    refused(said, "extend", model, other, "-o", run, "--resume")
    refused(said, "extend", model, other, "-o", run)
    refused(f"{run} is a run of model {model}; choose another", "extend", "tiny", plan, "-o", run, "--resume")
    refused(f"{run} exists; continue it with --resume", "extend", model, plan, "-o", run)
    (run / "run.json").write_text("{}")
    refused("holds no run of longrope extend: its run.json is missing or damaged", "extend", model, plan, "-o", run)
    (run / "run.json").unlink()
    refused(f"{run} exists and holds no run; choose another output", "extend", model, plan, "-o", run, "--resume")
    refused("run.json is missing or damaged", "finetune", run, 1)


def test_outputs_that_cannot_be(refused: Refused, model: Path, plan: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(f"{tmp_path}/file is not a folder; choose another output", "extend", model, plan, "-o", tmp_path / "file")
    refused("cannot write .*file/run", "extend", model, plan, "-o", tmp_path / "file" / "run")


def test_a_plan_that_is_resumed_from_its_own_copy(cli, model: Path, run: Path) -> None:
    assert cli("extend", model, run / "plan.toml", "-o", run, "--resume").code == 0


def test_fine_tuning_a_stage_that_cannot_be(refused: Refused, run: Path, tmp_path: Path) -> None:
    refused(f"stage = 2: the plan of {run} fine-tunes no such stage", "finetune", run, 2)
    refused(f"stage = 9: the plan of {run} fine-tunes no such stage", "finetune", run, 9)
    refused(f"stage = 1 is fine-tuned already; remove {run}/stage-1/model first", "finetune", run, 1)
    refused("nowhere holds no run of longrope extend", "finetune", tmp_path / "nowhere", 1)
    shutil.rmtree(run / "stage-1")
    refused(f"stage = 1: {run} has no factors for it yet; run longrope extend --resume", "finetune", run, 1)


def test_a_stage_before_the_first(cli, run: Path) -> None:
    result = cli("finetune", run, 0)
    assert result.code == 2
    assert "greater than or equal to 1" in result.err


def test_fine_tuning_one_stage(cli, run: Path, extended: tuple[Path, object], tmp_path: Path) -> None:
    """Its progress is in the log of the run, as for the run's other steps."""
    shutil.rmtree(run / "stage-1" / "model")
    before = len((run / "progress.log").read_text().splitlines())
    result = cli("finetune", run, 1, "--log", tmp_path / "log")
    assert result.code == 0, result.err
    assert "part 2 of 5, stage 1: fine-tune at 128" in result.err
    lines = (run / "progress.log").read_text().splitlines()[before:]
    assert [line.split(" ", 1)[1].split(":")[0] for line in lines[:1]] == ["part 2 of 5, stage 1"]
    assert "done with stage 1: fine-tune at 128 in" in lines[-1]
    assert (tmp_path / "log").read_text().splitlines() == lines
    name = "stage-1/model/model.safetensors"
    assert (run / name).read_bytes() == (extended[0] / name).read_bytes()


def stopped(run: Path) -> Path:
    """The run as it was before its first fine-tuning."""
    for path in (run / "stage-1" / "model", run / "stage-2", run / "recovery", run / "checkpoint"):
        shutil.rmtree(path)
    for name in ("extension.json", "results.json", "stage-1/training.json"):
        (run / name).unlink()
    return run


@pytest.mark.parametrize(
    ("launch", "said"),
    [
        (
            "false",
            "launch = 'false': fine-tuning stage 1 ended with code 1; its messages are above; then continue",
        ),
        ("true", "launch = 'true': fine-tuning stage 1 ended with code 0; its messages are above"),
        ("no-such-program -x", "launch = 'no-such-program': there is no such program"),
        ("python 'x", 'launch = "python \'x": no closing quotation'),
    ],
)
def test_a_launch_that_fails(cli, model: Path, plan: Path, run: Path, launch: str, said: str) -> None:
    result = cli("extend", model, plan, "-o", stopped(run), "--resume", "--launch", launch)
    assert (result.code, result.out) == (2, "")
    assert f"error: {said}" in result.err
    assert not (run / "stage-1" / "model").exists()


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_launch_logs_as_this_process_does(
    options: tuple[str, ...], cli, model: Path, plan: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def note(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr("longrope.stages.launch.subprocess.run", note)
    words = ("--resume", "--launch", "python", "--log", run / "more.log", *options)
    assert cli("extend", model, plan, "-o", stopped(run), *words).code == 2
    quiet = ["--quiet"] if options else []
    assert commands[0][-4 - len(quiet) :] == ["--report-to", "none", "--log", str(run / "more.log"), *quiet]
    last = (run / "more.log").read_text().splitlines()[-1]
    assert last.split(" ", 1)[1] == "stopped in stage 1: fine-tune at 128 (LongRopeError)"


def test_no_line_of_a_quiet_training(cli, run: Path) -> None:
    shutil.rmtree(run / "stage-1" / "model")
    assert cli("finetune", run, 1, "--quiet").err == ""


def test_after_a_launch_that_failed(cli, extended, model: Path, plan: Path, run: Path) -> None:
    """The same goes on without it, to the same end."""
    assert cli("extend", model, plan, "-o", stopped(run), "--resume", "--launch", "false").code == 2
    result = cli("extend", model, plan, "-o", run, "--resume")
    assert result.code == 0, result.err
    for name in ("extension.json", "checkpoint/model.safetensors"):
        assert (run / name).read_bytes() == (extended[0] / name).read_bytes()


@pytest.mark.slow
def test_a_launch_in_two_processes(extended: tuple[Path, object], model: Path, plan: Path, run: Path) -> None:
    """Standard output is JSON alone, whatever the processes say."""
    launch = shlex.join([sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"])
    command = [sys.executable, "-m", "longrope", "extend", str(model), str(plan), "-o", str(stopped(run))]
    done = subprocess.run(
        [*command, "--resume", "--launch", launch, "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found, wanted = json.loads(done.stdout), json.loads((extended[0] / "results.json").read_text())
    assert "fine-tune at 128" not in done.stderr
    assert "done with stage 1: fine-tune at 128 in" in (run / "progress.log").read_text()
    for name, cells in wanted["perplexity"].items():
        values = [cell["perplexity"] for cell in found["perplexity"][name]]
        assert values == pytest.approx([cell["perplexity"] for cell in cells], rel=1e-3)
    assert len(list((run / "stage-1" / "training").iterdir())) == 0


def test_factors_of_a_file_of_another_model(refused: Refused, model: Path, plan: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(Scaling([2.0] * 5, length=256).to_json())
    other = changed(plan, tmp_path, ('factors = "yarn"', f'factors = "{tmp_path / "mine.json"}"'))
    refused("5 values for a rope of dim 16", "extend", model, other, "-o", tmp_path / "run")


def test_help_loads_nothing_heavy() -> None:
    script = """
import sys
from longrope.cli.main import main
for name in ("extend", "finetune"):
    sys.argv = ["longrope", name, "--help"]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code
heavy = {"torch", "transformers", "numpy", "accelerate", "safetensors"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
    for option in ("--launch", "--resume", "--report-to", "--json"):
        assert option in done.stdout
