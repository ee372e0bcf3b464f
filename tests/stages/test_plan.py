"""Plans: what is refused and how, round trips, the ready-made ones, and advice."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.trainer_utils import SchedulerType

from longrope.errors import LongRopeError
from longrope.rope import Rope
from longrope.schemes import SCHEMES
from longrope.search.registry import METHODS
from longrope.stages.plan import Plan, load_plan, parse_plan, shipped_plans
from longrope.stages.plan_advice import LARGEST_STEP, advice, propose
from longrope.stages.plan_tables import Data, Distill, FinalEvaluation, Finetune, Recovery, Search, Stage
from longrope.stages.plan_values import Schedule
from longrope.stages.run_folder import StagedRun
from longrope.units import parse_length

L0 = {  # of the models that the ready-made plans are for
    "demo": 256,
    "2k-16k-128k-2m": 2048,
    "4k-32k-256k-2m": 4096,
    "longrope-llama2": 4096,
    "longrope2": 8192,
    "smollm2": 8192,
    "smollm2-2m": 8192,
    "tiny": 256,
}


def rope(original_length: int = 256) -> Rope:
    return Rope(dim=64, base=1e4, original_length=original_length)


def plan(*stages: str, top: str = "", rest: str = "") -> str:
    """A plan file with stages that hold these lines; each gets a length unless it has one."""
    found = [f"[[stages]]\n{'' if 'length' in stage else 'length = 2048'}\n{stage}" for stage in stages]
    return "\n".join(["version = 1", top, *found, rest])


GOOD = "[stages.finetune]\nsteps = 5"
ADAPTER = GOOD + "\nlora = 8\nmerge = false"
BAD = {
    "unknown key": (plan("", top="speed = 3"), r"speed is not a key of a plan; the keys are version, stages, recovery"),
    "of a stage": (plan("lenth = 3"), r"stages\[0\]\.lenth is not a key of a plan; the keys are length, factors"),
    "of a search": (plan("[stages.search]\nsteps = 3"), r"stages\[0\]\.search\.steps is not a key.* method, budget"),
    "of fine-tuning": (plan(GOOD + "\nlr = 1"), r"stages\[0\]\.finetune\.lr is not a key of a plan; .*rate"),
    "of the recovery": (plan("", rest="[recovery]\nmethod = 'cma'"), r"recovery\.method is not a key .*ceiling"),
    "of its search": (plan("", rest="[recovery.search]\nx = 1"), r"recovery\.search\.x is not a key .*documents"),
    "of the data": (
        plan("", rest="[data]\npath = 'x'"),
        r"data\.path is not a key .* source, train",
    ),
    "of the evaluation": (plan("", rest="[evaluation]\nx = 1"), r"evaluation\.x is not a key .*lengths, documents"),
    "two at once": (
        plan("a = 1", top="b = 2"),
        r"stages\[0\]\.a is .*; b is not a|b is .*; stages\[0\]\.a is not a",
    ),
    "order": (
        plan("length = '16k'", "length = '2k'"),
        r"stages\[1\]\.length = 2048 is not above stages\[0\]\.length = 16384; put the stages in ascending order",
    ),
    "the same twice": (plan("", ""), r"stages\[1\]\.length = 2048 is not above stages\[0\]\.length = 2048"),
    "both amounts": (
        plan(GOOD + "\ntokens = '1m'"),
        r"stages\[0\]\.finetune: has both tokens and steps; give one of them",
    ),
    "no amount": (plan("[stages.finetune]\nbatch = 2"), r"finetune: has neither tokens nor steps; give one"),
    "window": (plan(GOOD + "\nwindow = 2048"), r"stages\[0\]: finetune\.window = 2048 is not below length = 2048;"),
    "length": (
        plan("length = '16kk'"),
        r"plan: stages\[0\]\.length = '16kk' is not a number of tokens; write 16384, 16k or 2m$",
    ),
    "length of recovery": (plan("", rest="[recovery]\nlengths = ['x']"), r"recovery\.lengths\[0\] = 'x' is not a"),
    "recovery beyond": (
        plan("", rest="[recovery]\nlengths = ['1k', '4k']"),
        r"recovery\.lengths\[1\] = 4096 is above the last stage's length = 2048",
    ),
    "short length": (plan("length = 1"), r"stages\[0\]\.length = 1 must be 2 or more"),
    "fraction": (plan("length = 2048.5"), r"stages\[0\]\.length = 2048\.5 must be a whole number"),
    "no length": ("version = 1\n[[stages]]\nfactors = 'pi'", r"stages\[0\]\.length is missing"),
    "no stage": ("version = 1\nstages = []", r"stages is empty; give at least one"),
    "stages missing": ("version = 1", r"plan: stages is missing"),
    "stages no list": ("version = 1\nstages = 3", r"stages = 3 must be a list"),
    "stage no table": ("version = 1\nstages = [3]", r"stages\[0\] = 3 must be a table"),
    "newer": ("version = 2", r"version = 2, but this longrope reads 1: upgrade longrope"),
    "version of a kind": ("version = true", r"version = True, but this longrope reads 1"),
    "no version": ("[data]", r"version is missing; write version = 1 at the top"),
    "no TOML": ("version = ", r"plan is not a TOML file: Invalid value"),
    "method": (
        plan("[stages.search]\nmethod = 'grid'"),
        rf"stages\[0\]\.search\.method = 'grid' is unknown; choose one of {', '.join(METHODS)}$",
    ),
    "scheme": (
        plan("", rest="[evaluation]\nschemes = ['yarn', 'bogus']"),
        r"evaluation\.schemes\[1\] = 'bogus' is unknown; choose one of pi, ntk",
    ),
    "factors": (
        plan("factors = 'nowhere.json'"),
        r"stages\[0\]\.factors = 'nowhere\.json': choose search, an existing factors file, or one of pi, ntk",
    ),
    "attention": (plan("", top="attention = 'x'"), r"attention = 'x': choose su, yarn, none or a number above 0"),
    "attention of 0": (plan("", top="attention = 0"), r"attention = 0: choose su, yarn"),
    "attention above any float": (plan("", top=f"attention = 1{'0' * 400}"), r"attention = 10+: choose su, yarn"),
    "attention true": (plan("", top="attention = true"), r"attention = .*: choose su, yarn"),
    "questions of RULER": (
        plan("", rest="[evaluation]\nretrieval = ['niah_single_2', 'qa_1']"),
        r"evaluation\.retrieval\[1\] = 'qa_1': asks questions that a plan cannot name\. .* eval --ruler-data has them",
    ),
    "task of another suite": (
        plan("", rest="[evaluation]\nretrieval = ['ruler_vt']"),
        r"evaluation\.retrieval\[0\] = 'ruler_vt': .*Here the task is vt",
    ),
    "wordings of no lines": (
        plan("", rest="[data]\nwordings = 'several'"),
        r'data\.wordings = "several" with data\.needles = 0: no line is planted\. Give data\.needles',
    ),
    "schedule": (
        plan(GOOD + "\nschedule = 'wavy'"),
        r"stages\[0\]\.finetune\.schedule = 'wavy' must be 'linear', 'cosine'",
    ),
    "zero": (plan(GOOD + "\nbatch = 0"), r"stages\[0\]\.finetune\.batch = 0 must be 1 or more"),
    "negative": (plan(GOOD + "\nrate = -1.0"), r"finetune\.rate = -1\.0: choose auto, or a number above 0"),
    "infinite": (plan(GOOD + "\nrate = inf"), r"finetune\.rate = inf: choose auto, or a number above 0"),
    "not a number": (plan(GOOD + "\nrate = nan"), r"finetune\.rate = nan: choose auto"),
    "share": (plan("[stages.search]\nneedles = 1.5"), r"search\.needles = 1\.5 must be 1 or less"),
    "warmup": (plan(GOOD + "\nwarmup = 1.0"), r"finetune\.warmup = 1\.0 must be below 1"),
    "text for a number": (plan(GOOD + "\nbatch = '8'"), r"finetune\.batch = '8' must be a whole number"),
    "true for a number": (plan(GOOD + "\nbatch = true"), r"finetune\.batch = True must be a whole number"),
    "number for text": (plan("", rest="[data]\nsource = 3"), r"data\.source = 3 must be text in quotes"),
    "merge without lora": (plan(GOOD + "\nmerge = false"), r"merge = false, but lora = 0 trains no adapter; give its"),
    "average of an adapter": (plan(ADAPTER + "\naverage = 0.2"), r"average = 0\.2 needs merged weights; leave out ave"),
    "adapter under a stage": (
        plan(ADAPTER, "length = 4096\n" + GOOD),
        r"merge = false beside another fine-tuning: up to L0 the model would not be .*Leave merge out, or",
    ),
    "adapter on a stage": (plan(GOOD, "length = 4096\n" + ADAPTER), r"merge = false beside another fine-tuning"),
    "adapter and recovery": (
        plan(ADAPTER, rest="[recovery]"),
        r"recovery with merge = false: .* Leave \[recovery\] out",
    ),
    "adapter in a dual export": (plan(ADAPTER, top="export = 'dual'"), r"cannot switch weights .* Take static"),
    "export": (plan("", top="export = 'gguf'"), r"export = 'gguf' must be 'static', 'dual' or 'none'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_plans(name: str) -> None:
    text, said = BAD[name]
    with pytest.raises(LongRopeError) as error:
        parse_plan(text)
    assert re.search(said, str(error.value)), error.value


def test_good_plans_are_good() -> None:
    """The plans above are refused for what is wrong with them, not for how they are made."""
    found = parse_plan(plan(GOOD, "length = '16k'\nfactors = 'linear'", top="attention = 1.5", rest="[recovery]"))
    assert [stage.length for stage in found.stages] == [2048, 16384]
    assert (found.length, found.stages[1].factors, found.attention) == (16384, "pi", 1.5)
    assert found.recovery == Recovery()


def test_factors_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "factors.json"
    path.write_text("{}")
    assert parse_plan(plan(f"factors = '{path}'")).stages[0].factors == str(path)


def test_every_schedule_is_one_of_transformers() -> None:
    assert set(get_args(Schedule)) <= {kind.value for kind in SchedulerType}


@pytest.mark.parametrize("name", ["nowhere.toml", "elsewhere/tiny.toml", ".", "x" * 300])
def test_no_such_plan(name: str) -> None:
    with pytest.raises(LongRopeError, match=r"plan = .* cannot be read: .*; give a file, or one of .*smollm2, tiny"):
        load_plan(name)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(LongRopeError, match="no UTF-8 text"):
        load_plan(str(tmp_path / "plan.toml"))


@pytest.mark.parametrize("name", ["tiny", "tiny.toml", "plans/tiny.toml"])
def test_names_of_ready_made_plans(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_plan(name) == parse_plan(shipped_plans()["tiny"].read_text())


def test_there_are_the_plans_of_the_design() -> None:
    assert set(shipped_plans()) == set(L0)


@pytest.mark.parametrize("name", L0)
def test_ready_made_plans(name: str) -> None:
    found = load_plan(name)
    assert parse_plan(found.to_toml()) == found
    found.check_fits(rope(L0[name]))
    lengths = [L0[name], *(stage.length for stage in found.stages)]
    if name[0].isdigit():
        assert lengths == [parse_length(part) for part in name.split("-")]
    warned = " ".join(advice(found, rope(L0[name])))
    assert ("32x" in warned) == (name == "longrope-llama2")
    assert ("original tokens" in warned) == (name in ("demo", "smollm2", "smollm2-2m", "tiny"))


def test_the_papers_numbers() -> None:
    first, second, last = load_plan("longrope-llama2").stages
    assert first.finetune is not None
    assert second.finetune is not None
    assert (first.length, first.finetune.step_count(first.length), second.finetune.step_count(second.length)) == (
        2**17,
        400,
        600,
    )
    assert first.finetune.token_count(first.length) == 400 * 32 * 2**17
    assert (last.length, last.finetune) == (2**21, None)
    only = load_plan("longrope2").stages[0]
    assert only.finetune is not None
    assert only.finetune.token_count(only.length) == pytest.approx(1e10, rel=1e-3)


lengths = st.integers(2, 2**60) | st.integers(1, 2**50).map(lambda k: 1024 * k)
shares = st.floats(0, 1)
positive = st.floats(1e-12, 1e12)
whole = st.integers(1, 10**9)
text = st.text(st.characters(codec="utf-8"))
searches = st.builds(
    Search,
    method=st.sampled_from(list(METHODS)),
    budget=st.none() | lengths,
    documents=whole,
    needles=shares,
    population=st.none() | whole,
)
amounts = st.sampled_from([{"tokens": 10**6}, {"tokens": 3 * 2**30}, {"steps": 7}])
tunings = st.builds(
    lambda amount, **rest: Finetune(**amount, **rest),
    amounts,
    batch=whole,
    rate=positive | st.just("auto"),
    answers=positive,
    average=st.floats(0, 0.99),
    short=st.floats(0.1, 0.9),
    distill=st.none()
    | st.builds(Distill, weight=shares, hidden=st.just(1.5), skipped=shares, teacher=st.none() | text),
    schedule=st.sampled_from(get_args(Schedule)),
    warmup=st.floats(0, 1, exclude_max=True),
    lora=st.integers(0, 64),
    dtype=st.sampled_from(["bfloat16", "float32"]),
)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    stages = [
        Stage(
            length=length,
            factors=draw(st.sampled_from(["search", *SCHEMES])),
            search=draw(searches),
            finetune=draw(st.none() | tunings),
        )
        for length in sorted(draw(st.sets(lengths, min_size=1, max_size=4)))
    ]
    short = st.lists(st.integers(2, stages[-1].length)).map(tuple)
    return Plan(
        stages=tuple(stages),
        recovery=draw(st.none() | st.builds(Recovery, lengths=short, search=searches)),
        data=draw(st.builds(Data, source=st.none() | text, train=st.none() | text, needles=shares)),
        evaluation=draw(
            st.builds(
                FinalEvaluation,
                lengths=st.none() | st.lists(lengths).map(tuple),
                schemes=st.lists(st.sampled_from(list(SCHEMES))).map(tuple),
                questions=st.integers(1, 20),
            )
        ),
        attention=draw(st.sampled_from(["su", "yarn", "none", "1.25", 1.5])),
        original_tokens=draw(st.none() | positive),
        export=draw(st.sampled_from(["static", "dual", "none"])),
    )


@given(plans())
def test_round_trip(made: Plan) -> None:
    assert parse_plan(made.to_toml()) == made
    assert Plan.model_validate_json(made.model_dump_json()) == made


def test_a_model_that_is_long_already() -> None:
    with pytest.raises(
        LongRopeError, match=r"stages\[0\]\.length = 2048 is not above the model's original length 2048"
    ):
        parse_plan(plan("")).check_fits(rope(2048))


def test_amounts() -> None:
    how = Finetune(tokens=2**20, batch=4)
    assert (how.step_count(2**15), how.token_count(2**15)) == (8, 2**20)
    assert Finetune(tokens=100, batch=4).step_count(2**15) == 1
    skipping = Finetune(steps=3, batch=2, window=512)
    assert (skipping.sequence_length(4096), skipping.token_count(4096)) == (512, 3 * 2 * 512)


ADVICE = {
    "nothing": (plan(GOOD, rest="[recovery]"), []),
    "16x": (plan("length = 4096", rest="[recovery]"), []),
    "above 16x": (plan("length = 4097", rest="[recovery]"), [r"stages\[0\] \(4097\): 16x in one .* put one between"]),
    "search skipped": (plan("factors = 'yarn'", rest="[recovery]"), [r"yarn is not searched; factors = \"search\""]),
    "trained without a search": (plan("factors = 'yarn'\n" + GOOD, rest="[recovery]"), []),
    "no short factors": (plan(""), [r"add a table \[recovery\]"]),
    "mixed windows": (plan(GOOD + "\nshort = 0.2"), []),
    "an adapter that is off up to L0": (plan(GOOD + "\nlora = 8\nmerge = false"), []),
    "too few tokens": (
        plan(GOOD, top="original_tokens = 1e7", rest="[recovery]"),
        [r"on 81,920 tokens where about 5% of .* advised: finetune\.tokens = 500000 would be"],
    ),
    "too few for any model": (
        plan(GOOD, top="original_tokens = 15e12", rest="[recovery]"),
        [r"at most 1,073,741,824, are advised: finetune\.tokens = 1073741824 would be"],
    ),
    "enough": (plan(GOOD, top="original_tokens = 3e6", rest="[recovery]"), []),
    "weights that saw nothing": (
        plan("", "length = 4096", rest="[recovery]"),
        [r"stages\[0\] \(2k\): the next stage builds on .*: add finetune"],
    ),
    "answers without lines": (
        plan(GOOD + "\nanswers = 3", rest="[recovery]"),
        [r"stages\[0\] \(2k\): finetune.answers has no effect, as data.needles = 0"],
    ),
    "answers of lines": (plan(GOOD + "\nanswers = 3", rest="[recovery]\n[data]\nneedles = 0.5"), []),
    "a search of a closed form": (
        plan("factors = 'yarn'\n[stages.search]\ndocuments = 2\n" + GOOD, rest="[recovery]"),
        [r"stages\[0\] \(2k\): its table search has no effect, as its factors are those of yarn"],
    ),
    "everything": (
        plan("length = 8192\nfactors = 'pi'\n" + GOOD, top="original_tokens = 1e9"),
        ["32x", "original tokens", "recovery"],
    ),
}


@pytest.mark.parametrize("name", ADVICE)
def test_advice(name: str) -> None:
    text, said = ADVICE[name]
    found = advice(parse_plan(text), rope())
    assert len(found) == len(said), found
    for one, pattern in zip(found, said, strict=True):
        assert re.search(pattern, one), one


PROPOSED = {
    ("2k", "2m"): ["16k", "128k", "2m"],
    ("4k", "2m"): ["32k", "256k", "2m"],
    ("256", "128k"): ["2k", "16k", "128k"],
    ("8k", "64k"): ["64k"],
    ("8k", "128k"): ["64k", "128k"],
    ("4k", "4097"): ["4097"],
}
PROPOSED_SPARSE = {
    ("2k", "128k"): ["128k"],
    ("2k", "2m"): ["128k", "2m"],
    ("8k", "2m"): ["512k", "2m"],
    ("256", "16k"): ["16k"],
    ("4k", "4097"): ["4097"],
}


@pytest.mark.parametrize(("parameters", "wordings"), [(3_000_000, "one"), (135_000_000, "several")])
def test_lines_are_planted_in_several_wordings_where_the_model_reads_sentences(parameters: int, wordings: str) -> None:
    found = propose(rope(8192), 32768, parameters=parameters)
    assert (found.data.needles, found.data.wordings) == (0.5, wordings)
    given = propose(rope(8192), 32768, parameters=parameters, data=Data(needles=0.2, wordings="one"))
    assert (given.data.needles, given.data.wordings) == (0.2, "one")


@pytest.mark.parametrize("ends", PROPOSED)
def test_proposed_stages(ends: tuple[str, str]) -> None:
    first, last = map(parse_length, ends)
    found = propose(rope(first), last, parameters=10**9, sparse=False)
    assert [stage.length for stage in found.stages] == [parse_length(length) for length in PROPOSED[ends]]
    assert all(stage.finetune is None or stage.finetune.windows == "jump" for stage in found.stages)


@pytest.mark.parametrize("ends", PROPOSED_SPARSE)
def test_proposed_stages_of_sparse_windows(ends: tuple[str, str]) -> None:
    first, last = map(parse_length, ends)
    found = propose(rope(first), last, parameters=10**9)
    assert [stage.length for stage in found.stages] == [parse_length(length) for length in PROPOSED_SPARSE[ends]]
    assert advice(found, rope(first)) == []
    for stage in found.stages:
        assert stage.finetune is not None
        assert (stage.finetune.windows, stage.finetune.window, stage.finetune.rate) == ("sparse", 2048, "auto")
    assert found.data.needles == 0.5


@given(st.integers(10**5, 10**12))
def test_a_proposal_has_enough_steps(parameters: int) -> None:
    (stage,) = propose(rope(2048), 2**16, parameters=parameters).stages
    assert stage.finetune is not None
    assert stage.finetune.batch % 2 == 0
    assert 2 <= stage.finetune.batch <= 64
    if parameters > 10**7:
        assert stage.finetune.step_count(2**16) >= 200


@given(st.integers(2, 2**17), st.integers(2, 5000), st.integers(10**5, 10**12), st.none() | st.floats(1e6, 1e14))
def test_a_proposal_has_no_pitfalls(first: int, times: int, parameters: int, original_tokens: float | None) -> None:
    target = {"parameters": parameters, "original_tokens": original_tokens}
    assert advice(propose(rope(first), first * times, **target), rope(first)) == []
    found = propose(rope(first), first * times, **target, sparse=False)
    assert advice(found, rope(first)) == []
    found.check_fits(rope(first))
    lengths = [first, *(stage.length for stage in found.stages)]
    steps = [after / before for before, after in pairwise(lengths)]
    assert max(steps[:-1], default=1) <= 8
    assert steps[-1] <= (8 if len(steps) == 1 else LARGEST_STEP)
    assert lengths[-1] == first * times
    tuned = [stage.finetune is not None for stage in found.stages]
    assert tuned == ([True] if len(tuned) == 1 else [True] * (len(tuned) - 1) + [False])


def test_reading_a_plan_loads_no_torch() -> None:
    code = "import sys; from longrope.stages.plan import load_plan; load_plan('tiny'); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_the_plan_of_the_documentation_is_one() -> None:
    page = Path(__file__).parents[2] / "docs" / "extension.md"
    if not page.exists():
        pytest.skip("not in this distribution")
    found = parse_plan(page.read_text(encoding="utf-8").split("```toml")[1].split("```")[0])
    assert [stage.length for stage in found.stages] == [2**15, 2**18]


def test_a_run_takes_names_paths_and_torch_types() -> None:
    fields: Any = ("run", Path("tiny"), "tiny", torch.device("cpu"), torch.float32)
    assert StagedRun(*fields) == StagedRun(Path("run"), "tiny", load_plan("tiny"), "cpu", "float32")
    with pytest.raises(LongRopeError, match=r"^model = a Linear: a run loads it itself\. Give its name\.$"):
        StagedRun(Path("run"), torch.nn.Linear(1, 1), load_plan("tiny"))  # type: ignore[arg-type]
