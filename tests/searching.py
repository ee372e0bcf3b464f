"""A rope, small methods, and objectives in milliseconds: the squared distance of log factors from a target."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from longrope.errors import LongRopeError
from longrope.rope import Rope
from longrope.scaling import Scaling
from longrope.schemes import scheme
from longrope.search.auto import Auto
from longrope.search.budget import Budget
from longrope.search.cma import Cma
from longrope.search.evolution import Paper, Simple
from longrope.search.gradient import Gradient
from longrope.search.journal import Journal
from longrope.search.loop import SearchOutcome, SearchProgress, run_search
from longrope.search.method import Method
from longrope.search.protocol import Batch, CandidateBatch, CandidateLoss, FunctionObjective, Objective
from longrope.search.space import Space

ROPE, LENGTH = Rope(dim=16, base=10000.0, original_length=256), 2048
STARTS = [scheme(name, ROPE, LENGTH) for name in ("pi", "ntk", "yarn")]
# closer to PI at the end than YaRN, and shifted
TARGET = np.minimum(1 + 7 * np.linspace(0, 1, 8) ** 1.5, 7.5)
ATTENTION = 1.15
SMALL: dict[str, Method] = {
    "auto": Auto(ramps=3, gradient=Gradient(steps=8)),
    "gradient": Gradient(steps=12),
    "cma": Cma(population=6, generations=6),
    "paper": Paper(generations=5).with_population(12),
    "simple": Simple(generations=5).with_population(12),
}
DRAWN = ("cma", "paper", "simple")  # methods that depend on the seed


def quadratic(scaling: Scaling, shift: float = 0.0) -> float:
    """Its target lies ``shift`` above the log factors of `TARGET`."""
    distance = np.log(scaling.factors) - np.log(TARGET) - shift
    return float((distance**2).mean()) + 0.001 * abs(scaling.start_tokens - 8)


def slope(scaling: Scaling, shift: float = 0.0) -> list[float]:
    """Of the quadratic, by the log factors and the log attention factor."""
    return [*(2 / 8 * (np.log(scaling.factors) - np.log(TARGET) - shift)), 0.0]


def attentive(scaling: Scaling) -> float:
    """The quadratic, and the same for the attention factor."""
    return quadratic(scaling) + math.log(scaling.attention_factor / ATTENTION) ** 2


def attentive_slope(scaling: Scaling) -> list[float]:
    return [*slope(scaling)[:-1], 2 * math.log(scaling.attention_factor / ATTENTION)]


@dataclass(frozen=True)
class Documents:
    """The mean of several losses of a candidate, one an item: the quadratic plus what a pair and an item add.

    Args:
        tokens: of the items.
        noise: from a candidate and an item to what is added.
        apart: how far the target of an item lies from that of the one before; the middle one's is `TARGET`.
        calls: takes every evaluated pair.
        sizes: takes the number of pairs of every pass.
        backwards: whether the batches come in reverse order.
    """

    tokens: tuple[int, ...] = (5, 5, 5, 9, 9)
    noise: Callable[[Scaling, int], float] = lambda _, item: 0.01 * item
    apart: float = 0.0
    calls: list[tuple[Scaling, int]] | None = None
    sizes: list[int] | None = None
    backwards: bool = False

    def shift(self, item: int) -> float:
        return self.apart * (item - (len(self.tokens) - 1) / 2)

    def loss(self, scaling: Scaling, item: int) -> float:
        return quadratic(scaling, self.shift(item)) + self.noise(scaling, item)

    def slope(self, scaling: Scaling, item: int) -> tuple[float, ...]:
        """Of the loss without the noise."""
        return tuple(map(float, slope(scaling, self.shift(item))))

    def evaluate(self, batches: Sequence[Batch], *, gradient: bool) -> Iterator[tuple[int, list[CandidateLoss]]]:
        order = list(enumerate(batches))
        for index, batch in order[::-1] if self.backwards else order:
            assert len({self.tokens[item] for _, item in batch}) == 1, "a batch of unequal lengths"
            if self.calls is not None:
                self.calls.extend(batch)
            if self.sizes is not None:
                self.sizes.append(len(batch))
            slopes = [self.slope(*pair) if gradient else None for pair in batch]
            yield index, [CandidateLoss(self.loss(*pair), by) for pair, by in zip(batch, slopes, strict=True)]


def scattered(scaling: Scaling, item: int) -> float:
    """Noise of a pair, the same each time: normal, 0.02 wide."""
    seed = [item, *np.frombuffer(np.array(scaling.factors).tobytes(), dtype=np.uint32).tolist()]
    return float(0.02 * np.random.default_rng(seed).normal())


def counted(
    calls: list[Scaling], stop_at: int | None = None, loss: Callable[[Scaling], float] = quadratic
) -> Callable[[Scaling], float]:
    """A loss that is interrupted in its `stop_at`-th call."""

    def objective(scaling: Scaling) -> float:
        if len(calls) + 1 == stop_at:
            raise KeyboardInterrupt
        calls.append(scaling)
        return loss(scaling)

    return objective


def never(_: Scaling) -> float:
    raise AssertionError("evaluated again")


def search_with(
    path: Path,
    method: Method,
    *,
    objective: Objective | Callable[[Scaling], float] = quadratic,
    seed: int = 0,
    start_tokens: Sequence[int] = (0,),
    search_attention: bool = False,
    parametrization: str | None = None,
    starts: Sequence[Scaling] = STARTS,
    resume: bool = False,
    on_progress: Callable[[SearchProgress], None] | None = None,
    tokens: int | None = None,
    seconds: float | None = None,
    patience: int | None = None,
    batch_size: int = 1,
    racing: bool = False,
) -> SearchOutcome:
    """Search with a method in the space that it is best used with."""
    space = space_of(
        method,
        start_tokens=tuple(start_tokens),
        search_attention=search_attention,
        parametrization=parametrization or method.parametrization,
    )
    objective = FunctionObjective(objective, slope) if callable(objective) else objective
    journal = Journal(path, {"seed": seed}, resume=resume)
    try:
        conversation = method.propose(space, starts, np.random.default_rng(seed))
        budget = Budget(tokens, seconds, patience)
        return run_search(
            objective,
            conversation,
            journal,
            budget=budget,
            batch_size=batch_size,
            racing=racing,
            on_progress=on_progress,
        )
    finally:
        journal.close()


def space_of(method: Method, rope: Rope = ROPE, length: int = LENGTH, **fields: Any) -> Space:
    return method.make_space(rope, length, **fields)


def asks(
    method: Method,
    space: Space,
    *,
    loss: Callable[[Scaling], float] = quadratic,
    slope: Callable[[Scaling, int], Sequence[float]] = lambda one, _: slope(one),
    starts: Sequence[Scaling] = STARTS,
    seed: int = 0,
) -> list[CandidateBatch]:
    """All that a method asks when it is told the losses and, where it asks for a turn, the slopes of it."""
    asked, conversation = [], method.propose(space, starts, np.random.default_rng(seed))
    ask = next(conversation)
    while True:
        asked.append(ask)
        turn = ask.gradient_step
        answers = [
            CandidateLoss(loss(one), None if turn is None else tuple(slope(one, turn))) for one in ask.candidates
        ]
        try:
            ask = conversation.send(answers)
        except StopIteration:
            return asked


def generations(method: Method, space: Space, **fields: Any) -> list[list[Scaling]]:
    """The candidates of `asks`."""
    return [list(ask.candidates) for ask in asks(method, space, **fields)]


def timeless(path: Path) -> list[str]:
    """The lines of a journal without the seconds."""
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [json.dumps({key: value for key, value in line.items() if key != "seconds"}) for line in lines]


def evaluations(path: Path) -> list[dict[str, Any]]:
    """The lines of a journal that hold a loss."""
    return [line for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()) if "loss" in line]


# What runs in workers: `build` of a pool, made picklable by `partial`; what they evaluate, and the same in this one.

ITEMS = [(5, 0.0), (5, 0.01), (9, 0.02)]
TOKENS = [tokens for tokens, _ in ITEMS]
HERE = Documents(tuple(TOKENS), lambda _, item: ITEMS[item][1])
BATCHES: list[Batch] = [[(Scaling([1.0 + i / 7] * 8), item)] for i in range(5) for item in range(3)]


def build(_: int) -> Callable[[Sequence[Any]], Objective]:
    """Objectives of items ``(number of tokens, what is added to the loss)``."""
    return _documents


def build_marking(folder: Path, _: int) -> Callable[[Sequence[Any]], Objective]:
    """The same, with a file for every process, named by its id, and one line in it for every pair."""
    (folder / str(os.getpid())).touch()
    return partial(_marking, folder)


def build_marking_together(folder: Path, count: int, rank: int) -> Callable[[Sequence[Any]], Objective]:
    """The same, and nobody answers before there are `count` processes."""
    connect, deadline = build_marking(folder, rank), time.monotonic() + 120
    while len(list(folder.iterdir())) < count and time.monotonic() < deadline:
        time.sleep(0.005)
    return connect


def build_dying_once(folder: Path, answers: int, rank: int) -> Callable[[Sequence[Any]], Objective]:
    """The same as `build_marking`; one process kills itself after so many answers, and leaves its id in ``killed``."""
    build_marking(folder, rank)
    return partial(_dying_once, folder, answers)


def build_dying(_: int) -> Callable[[Sequence[Any]], Objective]:
    """Every evaluation ends its process."""
    return lambda _: FunctionObjective(lambda _: os.kill(os.getpid(), signal.SIGKILL))


def build_refusing(_: int) -> Callable[[Sequence[Any]], Objective]:
    return _refusing


def build_refused(_: int) -> Callable[[Sequence[Any]], Objective]:
    raise LongRopeError("there is no such model; look for it")


def _documents(items: Sequence[tuple[int, float]]) -> Documents:
    return Documents(tuple(tokens for tokens, _ in items), lambda _, item: items[item][1])


def _marking(folder: Path, items: Sequence[tuple[int, float]]) -> Documents:
    def added(_: Scaling, item: int) -> float:
        with (folder / str(os.getpid())).open("a") as file:
            file.write(f"{item}\n")
        return items[item][1]

    return Documents(tuple(tokens for tokens, _ in items), added)


def _dying_once(folder: Path, answers: int, items: Sequence[tuple[int, float]]) -> Documents:
    marking = _marking(folder, items)

    def added(scaling: Scaling, item: int) -> float:
        if (folder / str(os.getpid())).read_text().count("\n") == answers:
            with suppress(FileExistsError), (folder / "killed").open("x") as file:
                print(os.getpid(), file=file, flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
        return marking.noise(scaling, item)

    return Documents(marking.tokens, added)


def _refusing(_: Sequence[Any]) -> FunctionObjective:
    def refuse(_: Scaling) -> float:
        raise LongRopeError("out of memory at length 2048; use a shorter one")

    return FunctionObjective(refuse)
