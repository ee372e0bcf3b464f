"""The choice of a plan by hours: from sizes, speeds, memory and documents alone."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrope.cli.extend_by_hours import sentences
from longrope.cost.device_speed import DeviceSpeed
from longrope.cost.model_shape import ModelShape
from longrope.errors import LongRopeError
from longrope.models.load import load_config
from longrope.rope import Rope
from longrope.stages.choose_plan import Choice, choose_plan, more_time
from longrope.stages.plan import parse_plan
from longrope.stages.plan_by_hours import Advice
from longrope.stages.plan_cost import costs, part_costs
from longrope.stages.plan_goal import MEMORY, OVERHEAD, Goal, Machine, Texts
from longrope.stages.plan_options import LEAST_FULL_SHARE, LEAST_STEPS, MEASURED

TINY, TINY_ROPE = ModelShape.of(load_config("tiny"), "float32"), Rope.of(load_config("tiny"))
# SmolLM2-135M, of which the package is not installed everywhere
SMOL = ModelShape(
    parameters=134_515_008,
    weight_bytes=4 * 134_515_008,
    matmul_parameters=134_515_008,
    windows=(None,) * 30,
    query_features=576,
    kv_features=384,
    cached_features=(384,) * 30,
    hidden_size=576,
    mlp_features=1536,
    vocabulary=49152,
    lora_features=30 * (576 + 576 + 576 + 192 + 576 + 192 + 576 + 576 + 3 * (576 + 1536)),
    dtype="float32",
)
SMOL_ROPE = Rope(dim=64, base=100000.0, original_length=8192)
GIB = 2**30


def goal(hours: float, *, shape: ModelShape = TINY, length: int = 2048, speed: float = 4e10, **fields: Any) -> Goal:
    """The goal of a model on a machine with that many FLOPs a second."""
    rope = TINY_ROPE if shape is TINY else SMOL_ROPE
    texts = fields.pop("texts", Texts())
    memory = fields.pop("memory", 16 * GIB)
    machine = Machine(shape, {"float32": DeviceSpeed(speed, speed)}, memory, 64 * GIB, **fields)
    return Goal(rope, length, 3600 * hours, machine, texts=texts, original_length=rope.original_length)


def trained_windows(choice: Choice) -> int:
    finetune = choice.plan.stages[0].finetune
    return 0 if finetune is None else (finetune.steps or 0) * finetune.batch


def test_tiny_in_six_minutes_trains_all_weights() -> None:
    choice = choose_plan(goal(0.1))
    finetune = choice.plan.stages[0].finetune
    assert finetune is not None
    assert (choice.kind, choice.limit, finetune.lora, choice.plan.stages[0].factors) == (
        "fine-tuning",
        "time",
        0,
        "yarn",
    )
    assert finetune.steps is not None
    assert finetune.steps >= 40
    assert choice.plan.evaluation.documents == 8
    assert choice.plan.evaluation.retrieval == ("recall",)


def test_smollm2_to_16k_in_two_hours_trains_an_adapter() -> None:
    """Two cores reach 78 GFLOP/s: a pass of 16,384 tokens takes 176 s, a LoRA step of two windows a minute."""
    choice = choose_plan(goal(2, shape=SMOL, length=16384, speed=7.8e10))
    finetune = choice.plan.stages[0].finetune
    assert finetune is not None
    assert (choice.kind, finetune.lora, finetune.merge, finetune.window) == ("fine-tuning", 8, False, 2048)
    assert finetune.steps is not None
    assert 40 <= finetune.steps <= 110  # more where memory has room for activations
    assert choice.plan.stages[0].factors == "yarn"  # no search: one costs more than the training brings
    assert choice.plan.evaluation.documents >= 2
    assert choice.plan.evaluation.retrieval == ("recall",)


@pytest.mark.parametrize(
    ("change", "kind", "limit"),
    [
        ({}, "fine-tuning", "time"),
        ({"hours": 40}, "search and fine-tuning", "enough"),
        ({"texts": Texts(training_tokens=30_000), "hours": 1}, "fine-tuning", "texts"),
        ({"texts": Texts(training_tokens=5_000), "hours": 1}, "search", "texts"),
        ({"texts": Texts(training_tokens=5_000, search=0), "hours": 1}, "closed form", "texts"),
        ({"hours": 0.01}, "closed form", "time"),
        ({"memory": 120_000_000, "hours": 1, "lora": False}, "search", "memory"),
    ],
)
def test_kinds(change: dict[str, Any], kind: str, limit: str) -> None:
    choice = choose_plan(goal(**{"hours": 0.1, **change}))
    assert (choice.kind, choice.limit) == (kind, limit)


def test_where_all_weights_have_no_room_an_adapter_trains() -> None:
    """Adam takes 16 bytes a parameter: 2.2 GB of SmolLM2."""
    many: dict[str, Any] = {"shape": SMOL, "length": 16384, "speed": 1e14}
    full, adapter = choose_plan(goal(1, **many)), choose_plan(goal(1, **many, memory=2 * GIB))
    finetunes = [choice.plan.stages[0].finetune for choice in (full, adapter)]
    assert [finetune and finetune.lora for finetune in finetunes] == [0, 8]


def test_quantised_weights_get_an_adapter_or_a_search_and_no_checkpoint() -> None:
    many: dict[str, Any] = {"shape": SMOL, "length": 16384, "speed": 1e14}
    choices = [choose_plan(goal(1, **many, weights=weights)) for weights in ("plain", "adapted", "fixed")]
    finetunes = [choice.plan.stages[0].finetune for choice in choices]
    assert [finetune and (finetune.lora, finetune.merge) for finetune in finetunes] == [(0, True), (8, False), None]
    assert [finetune and finetune.rate for finetune in finetunes] == ["auto", 1e-3, None]
    assert [choice.plan.export for choice in choices] == ["static", "none", "none"]
    assert [choice.kind for choice in choices[1:]] == ["search and fine-tuning", "search"]
    for weights, wanted in (("adapted", True), ("fixed", False)):
        asked = goal(1, **many, weights=weights, lora=False)
        choice = choose_plan(asked)
        assert choice.kind == "search"
        assert Advice(choice, choice, asked.machine, {}).wants_lora == wanted


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"hours": 2}, True),  # trains all weights on too few tokens
        ({"hours": 200}, False),
        ({"hours": 2, "lora": True}, False),
        ({"hours": 5, "memory": 2 * GIB}, True),  # searches, as all weights have no room
        ({"hours": 5, "texts": Texts(training_tokens=5_000)}, False),
    ],
)
def test_a_missing_peft_is_named_where_an_adapter_would_train(change: dict[str, Any], wanted: bool) -> None:
    asked = goal(**{"shape": SMOL, "length": 16384, "speed": 7.8e10, "lora": False, **change})
    choice = choose_plan(asked)
    advice = Advice(choice, choice, asked.machine, {})
    assert advice.wants_lora == wanted
    assert any("longrope[lora]" in line for line in sentences(advice, change["hours"])) == wanted


def test_a_model_without_sparse_windows_trains_on_windows_that_jump() -> None:
    finetune = choose_plan(goal(0.1, sparse=False)).plan.stages[0].finetune
    assert finetune is not None
    assert (finetune.windows, finetune.window) == ("jump", 1024)


def test_questions_that_a_text_has_no_room_for_are_not_asked() -> None:
    assert choose_plan(goal(0.1, texts=Texts(questions=0))).plan.evaluation.retrieval == ()
    assert choose_plan(goal(0.1, texts=Texts(questions=1))).plan.evaluation.questions == 1


@pytest.mark.parametrize(("length", "recovered"), [(511, (256,)), (512, (256, 512))])
def test_short_factors_are_not_searched_beyond_the_target(length: int, recovered: tuple[int, ...]) -> None:
    plan = choose_plan(goal(1, length=length)).plan
    assert plan.recovery is not None
    assert plan.recovery_lengths(256) == recovered
    assert choose_plan(goal(1, length=length, texts=Texts(recovery=False))).plan.recovery is None


def test_too_little_time_says_the_least_which_is_then_enough() -> None:
    with pytest.raises(LongRopeError, match=r"hours = 0\.0001: too short for 2048 tokens here") as refused:
        choose_plan(goal(0.0001))
    least = float(str(refused.value).split("about ")[1].split()[0])
    assert "That is enough for the factors of yarn, not trained, measured on one text" in str(refused.value)
    assert choose_plan(goal(1.1 * least)).kind == "closed form"


def test_too_little_memory() -> None:
    with pytest.raises(LongRopeError, match="to = 2048: a pass of 2048 tokens does not fit into the free memory"):
        choose_plan(goal(1, memory=1_000_000))


def test_a_length_within_the_window() -> None:
    with pytest.raises(LongRopeError, match="256 is not above the model's original length 256"):
        choose_plan(goal(1, length=256))


def test_another_hour() -> None:
    choice = choose_plan(goal(0.5, shape=SMOL, length=16384, speed=7.8e10))
    longer = choose_plan(goal(1.5, shape=SMOL, length=16384, speed=7.8e10))
    gain = more_time(choice, longer)
    assert f"{trained_windows(longer)} training windows instead of {trained_windows(choice)}" in gain
    assert "test documents instead of 1" in gain
    everything = choose_plan(goal(40))
    assert more_time(everything, choose_plan(goal(41))) == "nothing more"
    few = [choose_plan(goal(hours, texts=Texts(training_tokens=30_000))) for hours in (1, 2)]
    assert more_time(*few) == "nothing without more texts"


def test_parts_add_up_to_the_stages() -> None:
    """The parts of the progress have all the costs of `costs`, and the names that `extend` reports."""
    plan = choose_plan(goal(40)).plan
    parts, whole = part_costs(plan, TINY, TINY_ROPE), costs(plan, TINY, TINY_ROPE)
    assert [part.name for part in parts] == ["stage 1: search", "stage 1: fine-tune", "recovery", "evaluation"]
    assert sum(part.total_flops for part in parts) == pytest.approx(sum(step.total_flops for step in whole))


@settings(max_examples=60, deadline=None)
@given(
    hours=st.floats(0.001, 500),
    scale=st.sampled_from([2, 4, 8, 64]),
    speed=st.floats(1e9, 1e15),
    memory=st.integers(10**8, 10**12),
    texts=st.builds(
        Texts,
        test=st.integers(1, 8),
        search=st.integers(0, 4),
        questions=st.sampled_from([0, 1, 20]),
        training_tokens=st.floats(0, 1e10),
    ),
    smol=st.booleans(),
    sparse=st.booleans(),
    lora=st.booleans(),
)
def test_a_choice_keeps_to_time_memory_and_texts(
    hours: float, scale: int, speed: float, memory: int, texts: Texts, smol: bool, sparse: bool, lora: bool
) -> None:
    shape, rope = (SMOL, SMOL_ROPE) if smol else (TINY, TINY_ROPE)
    length = scale * rope.original_length
    asked = goal(hours, shape=shape, length=length, speed=speed, memory=memory, texts=texts, sparse=sparse, lora=lora)
    try:
        choice = choose_plan(asked)
    except LongRopeError as error:
        refusal = str(error)
        assert re.search("too short|free memory", refusal)
        return
    plan, finetune = choice.plan, choice.plan.stages[0].finetune
    assert choice.seconds - OVERHEAD <= asked.budget * (1 + 1e-9)
    assert all(part.memory <= MEMORY * memory for part in choice.costs)
    assert plan.evaluation.documents <= texts.test or plan.evaluation.documents == 1
    assert plan.length == length
    assert plan.original_length == rope.original_length
    assert parse_plan(plan.to_toml()) == plan  # the file in the folder is the plan that runs
    if choice.kind != "closed form" and plan.evaluation.documents > 1:
        evaluation = choice.costs[-1].seconds(asked.machine.speeds)
        assert evaluation <= MEASURED * asked.budget
    if finetune is None:
        assert "fine-tuning" not in choice.kind
        return
    tokens = finetune.token_count(length)
    assert (finetune.steps or 0) >= LEAST_STEPS
    assert tokens <= texts.training_tokens * plan.data.repeats
    assert bool(finetune.lora) <= lora
    assert finetune.lora or not lora or tokens >= 0.9 * LEAST_FULL_SHARE * shape.parameters
    assert (plan.recovery is None) or not finetune.lora


@pytest.mark.parametrize("shape", [TINY, SMOL])
def test_more_hours_never_train_on_less(shape: ModelShape) -> None:
    length = 8 * (TINY_ROPE if shape is TINY else SMOL_ROPE).original_length
    asked = goal(1, shape=shape, length=length, speed=7.8e10)
    windows, documents = [], []
    for hours in (0.5, 1, 2, 4, 8, 16):
        try:
            choice = choose_plan(replace(asked, seconds=3600 * hours))
        except LongRopeError:
            continue
        windows.append(trained_windows(choice))
        documents.append(choice.plan.evaluation.documents)
    assert len(windows) >= 3
    assert documents == sorted(documents)
    assert windows == sorted(windows) or max(windows) <= 1.2 * windows[-1]
