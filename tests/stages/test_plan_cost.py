"""What plans cost: counted on real models, in FLOPs, in token-evaluations and in memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import families
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from longrope.cli.plan_output import report
from longrope.cost import device_speed, peak_memory, timing
from longrope.cost.device_speed import Computation, DeviceSpeed, measure_device_speed
from longrope.cost.model_shape import Flops, ModelShape
from longrope.data.weighted_text import WeightedText, perplexity_texts
from longrope.errors import LongRopeError
from longrope.longcontext import training_loss
from longrope.longcontext.training_loss import use_chunked_loss
from longrope.models import device_memory as memory_module
from longrope.models.device_memory import device_memory
from longrope.models.load import load_config
from longrope.objectives.model_loss import ModelObjective
from longrope.rope import Rope
from longrope.schemes import scheme
from longrope.search.find import find_factors
from longrope.search.protocol import Batch, CandidateLoss
from longrope.search.registry import METHODS
from longrope.stages import plan_cost as costing
from longrope.stages.plan import Plan
from longrope.stages.plan_cost import Cost, check_plan_memory, costs
from longrope.stages.plan_tables import Distill, FinalEvaluation, Finetune, Recovery, Search, Stage

TINY = ModelShape.of(load_config("tiny"))
LENGTH = 16  # no family's window is shorter
SHAPES = {**{name: {} for name in families.FAMILIES}, "all heads": {"num_key_value_heads": 4}}


def config(name: str) -> object:
    found = families.config("llama" if name == "all heads" else name, **SHAPES[name])
    found._attn_implementation, found._experts_implementation = "eager", "eager"  # kernels that the counter sees into
    return found


def counted(model: torch.nn.Module, *, backward: bool) -> int:
    tokens = families.tokens(1, LENGTH)
    with FlopCounterMode(display=False) as counter:
        if backward:
            model(input_ids=tokens, labels=tokens).loss.backward()
        else:
            families.logits(model, tokens)
    return counter.get_total_flops()


def as_counted(work: Flops, times: float = 1.0) -> float:
    """A kernel that is no fused one computes the masked half of attention, too."""
    return times * (work.linear + work.attention * 2 * LENGTH / (LENGTH + 1))


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_and_flops_of_a_forward_pass(name: str) -> None:
    model = families.from_config(config(name))
    shape = ModelShape.of(model.config)
    assert shape.parameters == model.num_parameters()
    assert counted(model, backward=False) == pytest.approx(as_counted(shape.forward(LENGTH)), rel=0.01)


@pytest.mark.parametrize("trained", [True, False])
def test_flops_of_training(trained: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpointed, as fine-tuning long sequences is: layers are computed twice and then backwards."""
    monkeypatch.setattr(training_loss, "logits_on", lambda _: 25)  # so that the head runs in chunks
    model = families.from_config(config("llama")).train()
    model.activation_checkpointing_enable({"use_reentrant": False})
    if not trained:  # as with LoRA: only what flows through
        model.requires_grad_(False)
        model.get_input_embeddings().requires_grad_(True)
    work = ModelShape.of(model.config).backward(LENGTH, trained=trained)
    # backwards, attention has four products where they are not fused, two of them without gradients for the weights
    plain = replace(work, attention=work.attention * 4 / 4.5)
    found = counted(use_chunked_loss(model), backward=True)
    assert found <= as_counted(plain)  # the last product of a layer is not computed again: nobody needs it
    assert found == pytest.approx(as_counted(plain), rel=0.07)


def test_flops_of_training_that_saves_all_activations() -> None:
    model = families.from_config(config("llama")).train()
    work = ModelShape.of(model.config).backward(LENGTH, trained=True, recomputed=False)
    plain = replace(work, attention=work.attention * 3 / 3.5)
    assert counted(use_chunked_loss(model), backward=True) == pytest.approx(as_counted(plain), rel=0.01)


@given(st.integers(1, 300), st.none() | st.integers(1, 400))
def test_attention_sees_a_window(length: int, window: int | None) -> None:
    shape = replace(TINY, windows=(window,), query_features=1)
    seen = sum(min(i + 1, window or length) for i in range(length))
    assert shape.forward(length).attention == 4 * seen


class Counting:
    """An objective that counts token-evaluations."""

    def __init__(self, objective: ModelObjective, total: list[int]) -> None:
        self.objective, self.tokens, self.total = objective, objective.tokens, total

    def evaluate(self, batches: Sequence[Batch], *, gradient: bool) -> Iterator[tuple[int, list[CandidateLoss]]]:
        for number, answers in self.objective.evaluate(batches, gradient=gradient):
            self.total[0] += sum(self.tokens[item] for _, item in batches[number]) * (3 if gradient else 1)
            yield number, answers


@pytest.mark.parametrize(
    ("name", "budget", "population"), [("auto", None, None), ("auto", 8000, None), ("cma", None, 4), ("paper", 4000, 8)]
)
def test_token_evaluations_of_a_search(name: str, budget: int | None, population: int | None, tmp_path: Path) -> None:
    from longrope.search.budget import Budget
    from longrope.search.registry import fit_to_budget
    from longrope.search.run import SearchObjectives, SearchRun

    model, length = families.build("llama", num_hidden_layers=1), 128
    rope, how = Rope.of(model), Search(method=name, budget=budget, documents=2, needles=0.0, population=population)
    plan = Plan(stages=(Stage(length=length, search=how),), evaluation=FinalEvaluation(lengths=()))
    (cost,) = costs(plan, ModelShape.of(model.config), rope)
    items = perplexity_texts(families.tokens(4, length).numpy())
    chosen = METHODS[name] if population is None else METHODS[name].with_population(population)
    chosen, _ = fit_to_budget(chosen, [length, length], budget if population is None else None)
    total = [0]

    def make_objective(items: Sequence[WeightedText]) -> Counting:
        return Counting(ModelObjective(model, items), total)

    find_factors(
        chosen.make_space(rope, length),
        SearchObjectives.of(make_objective, items[:2], items[2:]),
        tmp_path,
        method=chosen,
        starts=[scheme(name, rope, length) for name in chosen.schemes],
        run=SearchRun(budget=Budget(budget)),
    )
    assert cost.search_tokens == pytest.approx(total[0], rel=0.2)


ROPE = Rope(dim=64, base=1e4, original_length=256)
TUNE = Finetune(steps=10, batch=2)


def cost_of(*stages: Stage, **rest: object) -> list[Cost]:
    return costs(Plan(stages=stages, **{"evaluation": FinalEvaluation(lengths=()), **rest}), TINY, ROPE)


def test_parts_of_a_plan() -> None:
    parts = cost_of(
        Stage(length=2048, finetune=TUNE),
        Stage(length=8192, factors="yarn"),
        recovery=Recovery(),
        evaluation=FinalEvaluation(documents=3, schemes=("pi",)),
    )
    assert [(part.name, part.length) for part in parts] == [
        ("stage 1", 2048),
        ("stage 2", 8192),
        ("recovery", 512),
        ("evaluation", 8192),
    ]
    assert [part.train_tokens for part in parts] == [10 * 2 * 2048, 0, 0, 0]
    assert (parts[1].total_flops, parts[1].memory, parts[1].search_tokens) == (0, 0, 0)
    assert parts[3].search_tokens == 3 * 6 * 8192  # original, PI, two stages' factors, one fine-tuned, extended
    assert parts[3].flops == {("bfloat16", "passes"): TINY.forward(8192).times(18)}


def test_questions_of_one_text_pass_once() -> None:
    def evaluated(**fields: object) -> Cost:
        table = FinalEvaluation(documents=1, schemes=(), retrieval=("recall", "vt"), trials=21, **fields)
        return cost_of(Stage(length=2048, factors="yarn"), evaluation=table)[-1]

    candidates, lengths = 3, 256 + 2048
    assert evaluated().search_tokens == candidates * (2048 + 2 * 21 * lengths)
    assert evaluated(questions=10).search_tokens == candidates * (2048 + 2 * 3 * lengths)
    assert evaluated(questions=10).total_flops < evaluated().total_flops / 6


def test_what_makes_training_cheaper() -> None:
    def tuned(**how: object) -> Cost:
        return cost_of(Stage(length=8192, factors="yarn", finetune=TUNE.model_copy(update=how)))[0]

    plain = tuned()
    assert plain.flops == {("bfloat16", "training"): TINY.backward(8192, trained=True, recomputed=False).times(20)}
    assert set(tuned(dtype="float32").flops) == {("float32", "training")}
    assert set(tuned(lora=8).flops) == {("bfloat16", "adapters")}
    assert set(tuned(rate="auto").flops) == {("bfloat16", "training"), ("bfloat16", "passes")}
    assert tuned(lora=8).total_flops < plain.total_flops
    assert tuned(lora=8).memory < plain.memory < tuned(dtype="float32").memory
    short = tuned(window=1024)
    assert short.train_tokens == plain.train_tokens / 8
    assert short.total_flops < plain.total_flops / 8
    assert short.memory < plain.memory / 2
    assert tuned(short=0.5).total_flops < plain.total_flops
    linear = [sum(flops.linear for flops in each.flops.values()) for each in (tuned(short=0.5), plain)]
    assert linear[0] == linear[1]
    taught, alone = tuned(short=0.5, distill=Distill()), tuned(short=0.5)
    assert taught.total_flops > alone.total_flops
    assert taught.memory == alone.memory + 2 * TINY.parameters
    assert tuned(short=0.5, distill=Distill(weight=0)) == alone  # no teacher is loaded
    states = tuned(short=0.5, distill=Distill(hidden=16)).memory - taught.memory
    assert states == 2 * (len(TINY.windows) + 1) * TINY.hidden_size * 8192  # of the teacher


@pytest.mark.parametrize("lora", [0, 8])
def test_a_test_of_rates_keeps_the_weights_in_main_memory(lora: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak_memory, "activation_budget", lambda _: 2**40)
    saved = 4 * (8 * TINY.lora_features if lora else TINY.parameters)
    for device, on_device in (("cpu", saved), ("mps", saved), ("cuda", 0)):
        stages = [
            Stage(length=2048, factors="yarn", finetune=TUNE.model_copy(update={"rate": rate, "lora": lora}))
            for rate in ("auto", 1e-4)
        ]
        shape = replace(TINY, device=device)
        tested, given = (
            costs(Plan(stages=(stage,), evaluation=FinalEvaluation(lengths=())), shape, ROPE)[0] for stage in stages
        )
        assert tested.memory - given.memory == on_device
        assert tested.main_memory - given.main_memory == saved - on_device


def test_a_test_of_rates_takes_time() -> None:
    """Six steps at each of six rates, and seven times the losses of six sequences."""
    given, tested = (
        cost_of(Stage(length=2048, factors="yarn", finetune=TUNE.model_copy(update={"rate": rate})))[0]
        for rate in (1e-4, "auto")
    )
    step = given.total_flops / 10
    assert tested.total_flops == pytest.approx(given.total_flops + 36 * step + 42 * TINY.forward(2048).total)
    assert tested.train_tokens == given.train_tokens


def test_autocast_keeps_copies_of_trained_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16, until the forward pass ends, even where layers are recomputed."""
    monkeypatch.setattr(peak_memory, "SAVED", 0)
    monkeypatch.setattr(peak_memory, "ROOM", 0.0)
    widened = replace(TINY, parameters=TINY.parameters + 1000)
    for mixed, bytes_ in ((True, 18), (False, 16)):
        one, more = (peak_memory.of_training(shape, 512, lora=0, mixed=mixed) for shape in (TINY, widened))
        assert more - one == 1000 * bytes_


def test_layers_are_kept_where_memory_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU in half of what weights and optimizer leave, on CUDA in the budget of activations.

    What training needs stays the same.
    """
    length = 2**17
    kept = peak_memory._activations(TINY, length, mixed=False)
    assert kept > peak_memory.SAVED
    weights, needed = 16 * TINY.parameters, peak_memory.of_training(TINY, length, lora=0, mixed=False)
    assert needed < kept
    for bytes_, recomputed in ((2 * kept + weights, False), (2 * kept + weights - 4, True)):
        monkeypatch.setattr(peak_memory, "free_memory", lambda _, free=bytes_: free)
        assert peak_memory.recomputes_layers(TINY, length, lora=0, mixed=False) == recomputed
        assert not peak_memory.recomputes_layers(TINY, length, lora=8, mixed=False)  # smaller optimizer
        assert peak_memory.of_training(TINY, length, lora=0, mixed=False) == needed
    for budget, recomputed in ((kept, False), (kept - 1, True)):
        monkeypatch.setattr(peak_memory, "activation_budget", lambda _, budget=budget: budget)
        assert peak_memory.recomputes_layers(TINY, length, lora=0, mixed=False) == recomputed
    monkeypatch.setattr(peak_memory, "activation_budget", lambda _: 0)
    assert not peak_memory.recomputes_layers(TINY, 1024, lora=0, mixed=False)


def test_what_makes_a_search_cheaper() -> None:
    def searched(**how: object) -> Cost:
        return cost_of(Stage(length=2**15, search=Search(**how)))[0]

    plain = searched()
    assert searched(documents=1).search_tokens < plain.search_tokens
    assert searched(documents=2) == plain
    assert searched(needles=0.0).search_tokens < plain.search_tokens
    assert searched(budget=10 * 2**15).search_tokens < plain.search_tokens
    assert searched(window=1024).total_flops < plain.total_flops / 8
    assert searched(method="cma").memory < plain.memory  # no gradients


def test_a_search_costs_the_same_after_a_training() -> None:
    first, second = (
        cost_of(Stage(length=2048), Stage(length=2049)),
        cost_of(Stage(length=2048, factors="yarn", finetune=TUNE), Stage(length=2049)),
    )
    assert second[1].search_tokens == first[1].search_tokens


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")  # peft asks transformers for it
def test_lora_counts_its_parameters() -> None:
    peft = pytest.importorskip("peft")
    model = families.build("llama")
    shape = ModelShape.of(model.config)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))
    assert adapted.get_nb_trainable_parameters()[0] == 4 * shape.lora_features


def test_time_is_work_by_rate() -> None:
    work = {Computation("bfloat16"): Flops(100.0, 30.0), Computation("float32"): Flops(10.0)}
    speeds = {"bfloat16": DeviceSpeed(10.0, 5.0, 3.0, 2.0), "float32": DeviceSpeed(2.0, 1.0)}
    cost = Cost("x", 1, 0, 0, work, 0)
    assert cost.total_flops == 140
    assert cost.seconds(speeds) == 10 + 6 + 5
    work |= {Computation("bfloat16", "training"): Flops(10.0, 5.0), Computation("bfloat16", "adapters"): Flops(20.0)}
    assert Cost("x", 1, 0, 0, work, 0).seconds(speeds) == 10 + 6 + 5 + 3 * (1 + 1) + 2 * 2


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "mixtral", "smollm3", "phi3"])
def test_rates_of_families(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "ENOUGH", 1e-4)
    given, random = families.config(name), torch.get_rng_state()
    before = given.to_dict()
    found = measure_device_speed(given, device="cpu", dtype="float32", training=True)
    assert min(found.training, found.adapters) > 0
    assert found.linear > 1e6
    assert found.attention > 1e6
    assert given.to_dict() == before
    assert torch.equal(torch.get_rng_state(), random)


def test_the_model_that_is_timed_has_the_last_layers() -> None:
    given = families.config("gemma3_text")
    small = ModelShape.of(device_speed._small(given))
    assert (small.windows, small.mlp_features) == ((16, None), ModelShape.of(given).mlp_features)


def test_plans_that_cannot_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows make the same length fit."""
    config = load_config("tiny")
    monkeypatch.setattr(costing, "free_memory", lambda _: 2**30)

    def plan(window: int | None) -> Plan:
        stage = Stage(length=2**17, search=Search(window=window), finetune=Finetune(steps=1, window=window))
        return Plan(stages=[stage], evaluation=FinalEvaluation(lengths=(2048,)))

    check_plan_memory(plan(2048), config, dtype="auto", device="cpu")
    with pytest.raises(
        LongRopeError, match=r"stage 1: length = 131072 takes about [\d.]+ GiB .* 1.0 GiB free: a window"
    ):
        check_plan_memory(plan(None), config, dtype="auto", device="cpu")
    monkeypatch.setattr(costing, "free_memory", lambda _: None)
    check_plan_memory(plan(None), config, dtype="auto", device="xpu")


def test_what_waits_in_main_memory_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fine-tuning, and a search by gradient, where a device may keep nothing."""
    monkeypatch.setattr(peak_memory, "activation_budget", lambda _: 0)
    config, length = load_config("tiny"), 2**17
    plan = Plan(stages=[Stage(length=length, finetune=TUNE)], evaluation=FinalEvaluation(lengths=()))
    (part,) = costs(plan, ModelShape.of(config), Rope.of(config))
    inputs = 4 * length * 256
    assert part.main_memory == 4 * inputs  # in float32
    monkeypatch.setattr(costing, "free_memory", lambda device: part.main_memory - 1 if device == "cpu" else 2**50)
    with pytest.raises(LongRopeError, match=r"takes about 0\.5 GiB of main memory beside cuda where"):
        check_plan_memory(plan, config, dtype="auto", device="cuda")
    monkeypatch.setattr(
        memory_module, "device_memory", lambda device: part.main_memory - 1 if device == "cpu" else 2**50
    )
    (warning,) = [
        one for one in report(plan, config, "cuda", dtype="auto", measure=False).advice if "main memory" in one
    ]
    assert warning.startswith("stage 1: needs about")


def test_memory_of_this_machine() -> None:
    assert (device_memory("cpu") or 0) > 2**28
    assert device_memory("mps") == device_memory("cpu")  # Apple's is shared
    assert device_memory("xpu") is None


MEASURED = Path(__file__).parent / "peak_memory.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("mode", "dtype", "length"),
    [(mode, dtype, 4096) for mode in ("forward", "gradient", "train") for dtype in ("float32", "bfloat16")]
    + [("train", "float32", 16384)],  # where MLPs go in pieces
)
def test_peak_memory(mode: str, dtype: str, length: int) -> None:
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, MEASURED, mode, dtype, str(length)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    measured, shape = int(done.stdout), replace(TINY, dtype=dtype)
    if mode == "train":
        predicted = peak_memory.of_training(shape, length, lora=0, mixed=dtype == "bfloat16") - 16 * shape.parameters
    else:
        predicted = peak_memory.of_pass(shape, length, gradient=mode == "gradient") - shape.parameters * shape.bytes
    assert predicted == pytest.approx(measured, rel=0.25)
