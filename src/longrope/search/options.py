"""The rarely used settings of a search, with the defaults of ``longrope search``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from longrope.checks import as_list, to_python, torch_name, whole
from longrope.data.search_texts import SearchTextSpec
from longrope.errors import LongRopeError, unknown
from longrope.scaling import Extension, Scaling
from longrope.schemes import canonical
from longrope.search import NEEDLE_WEIGHT
from longrope.search.budget import Budget
from longrope.search.method import Method
from longrope.search.parametrizations import PARAMETRIZATIONS
from longrope.search.registry import METHODS, get_method
from longrope.units import token_count, token_counts

LONG = 8192  # tokens of a document, above which two are enough
LEAST = {"seeds": 1, "batch_size": 1, "search_documents": 1, "held_out_documents": 1, "population": 1, "data_seed": 0}
EXISTING = ("refuse", "resume", "overwrite")


@dataclass(frozen=True)
class SearchOptions:
    """Settings of a search. Numbers of tokens may be strings such as ``"2m"``, and one value may stand for a list.

    Args:
        budget: Most token-evaluations of each seed; for a function of yours, most calls. None for the method's own.
        minutes: Most minutes of evaluation of each seed.
        patience: Most generations (gradient: comparisons) in a row without a better candidate.
        population: Population, or number of gradient steps; None for the method's own.
        parametrization: A key of `PARAMETRIZATIONS`; None for the method's own.
        schemes: Names of the schemes to start from; None for the method's own.
        factors: Other factors to start from: scalings, extensions, or paths of factors files and run folders.
        seeds: Number of searches, with seeds 0, 1, …; the best wins. More than one needs a method that draws.
        attention: Attention factor: ``su``, ``yarn``, ``none``, a number, or ``search``. Schemes and factors that the
            winner is compared with have it too, but with ``su`` and ``search`` their own one.
        start_tokens: Whether to search the number of start tokens n̂ too, among `START_TOKENS`; or the numbers to choose
            from, such as ``(0, 4)``.
        needles: Weight of the answers to questions at the end of the documents, from 0 (none) to 1 (answers alone).
        also: Shorter lengths in tokens that count as much as the target length.
        keep_short: Most that the factors may raise the perplexity of texts of L0 tokens, as a share: 0.01 is 1%. Such
            factors can serve short texts too, without short factors. None for no limit.
        tail: Number of tokens at the end of each document that count; None for all.
        window: Number of tokens in a forward pass, whose positions jump up to the length; None for the length.
        search_documents: Number of documents whose loss is minimised; None for 4, or 2 above `LONG` tokens.
        held_out_documents: Number of other documents, which choose the winner; None for as many.
        data_seed: Seed of the split into search, held-out and test documents.
        batch_size: Most (candidate, document) pairs in one forward pass. In frozen contexts it is 1.
        racing: Whether to drop candidates early that are clearly worse. No effect in frozen contexts.
        workers: Number of processes, ``ray`` or ``ray://HOST:PORT``. A loaded model is evaluated in this process.
        dtype: Dtype to load a model in, a key of `longrope.models.load.DTYPES` or a torch dtype.
        device: Device to load a model on; ``auto`` for the accelerator if there is one.
        cache: Folder that keeps tokens from one run to the next.
        text_key: Key or column of the text in JSON, ``.csv`` and ``.parquet``; None for ``text``.
        original_length: L0 of a named model in tokens, where its fields are wrong or disagree; None takes its own.
        existing: What to do with a run in the output folder: ``refuse``, ``resume`` or ``overwrite``.

    Raises:
        LongRopeError: If a value is not possible.
    """

    budget: int | str | None = None
    minutes: float | None = None
    patience: int | None = None
    population: int | None = None
    parametrization: str | None = None
    schemes: Sequence[str] | None = None
    factors: Sequence[str | Path | Scaling | Extension] = ()
    seeds: int = 1
    attention: str | float = "su"
    start_tokens: bool | Sequence[int] = False
    needles: float = NEEDLE_WEIGHT
    also: Sequence[int | str] = ()
    keep_short: float | None = None
    tail: int | str | None = None
    window: int | str | None = None
    search_documents: int | None = None
    held_out_documents: int | None = None
    data_seed: int = 0
    batch_size: int = 1
    racing: bool = False
    workers: str = "1"
    dtype: str = "auto"
    device: str = "auto"
    cache: Path | None = None
    text_key: str | None = None
    original_length: int | None = None
    existing: str = "refuse"

    def __post_init__(self) -> None:
        object.__setattr__(self, "workers", str(self.workers))
        for name in ("dtype", "device"):
            object.__setattr__(self, name, torch_name(getattr(self, name)))
        if self.existing not in EXISTING:
            raise unknown("existing", self.existing, EXISTING)
        self._check_types()
        if not 0 <= self.needles <= 1:
            raise LongRopeError(f"needles = {self.needles:g}: not a weight from 0 (no answers) to 1 (answers alone).")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise LongRopeError(f"minutes = {self.minutes:g}: allows nothing. Use a number above 0.")
        if self.keep_short is not None and not 0 <= self.keep_short < math.inf:
            raise LongRopeError(f"keep_short = {self.keep_short:g}: not a share of 0 or more. Give 0.01 for 1%.")
        if self.parametrization is not None and self.parametrization not in PARAMETRIZATIONS:
            raise unknown("parametrization", self.parametrization, PARAMETRIZATIONS)
        if self.schemes is not None:
            object.__setattr__(self, "schemes", tuple(canonical(name) for name in as_list(self.schemes)))
            if not self.schemes and not self.factors:
                raise LongRopeError("schemes = (): the search has no start. Name a scheme, or give factors.")
        object.__setattr__(self, "also", tuple(sorted(set(token_counts("also", self.also)))))
        _ = self.limits

    def _check_types(self) -> None:
        """Make Python's numbers of those of other libraries, and refuse what is neither a number nor a list."""
        for name, least in LEAST.items():
            if getattr(self, name) is not None:
                object.__setattr__(self, name, whole(name, getattr(self, name), least))
        if self.original_length is not None:
            object.__setattr__(self, "original_length", token_count("original_length", self.original_length))
        for name in ("needles", "minutes", "keep_short"):
            value = to_python(getattr(self, name))
            if not isinstance(value, (int, float)) and (value is not None or name == "needles"):
                raise LongRopeError(f"{name} = {value!r}: not a number.")
            object.__setattr__(self, name, value)
        object.__setattr__(self, "attention", to_python(self.attention))
        object.__setattr__(self, "factors", tuple(as_list(self.factors)))
        for value in self.factors:
            if not isinstance(value, (str, Path, Scaling, Extension)):
                raise LongRopeError(f"factors = [{value!r:.60}]: give scalings, extensions or paths of their files.")

    @property
    def limits(self) -> Budget:
        """Limits of each search."""
        seconds = None if self.minutes is None else 60 * self.minutes
        return Budget(None if self.budget is None else token_count("budget", self.budget, 1), seconds, self.patience)

    @property
    def decides_attention(self) -> bool:
        """Whether the winner must have the attention factor of these options, such as 1 for a ``dual`` export."""
        return self.attention not in ("su", "search")

    def text_spec(self, length: int, *, held_out: bool = False) -> SearchTextSpec:
        """Return the texts to search on, or those that choose the winner, for a target length in tokens.

        Held-out documents have other questions, at other places: factors that fit the distances between the questions
        and the lines of the search alone are not chosen.

        Raises:
            LongRopeError: If the window or one of ``also`` is longer than the target length.
        """
        lengths = [length, *map(int, self.also)]
        if max(lengths) > length:
            raise LongRopeError(f"also = {max(lengths)}: above length = {length}. Give the longest as the length.")
        tail = None if self.tail is None else token_count("tail", self.tail, 1)
        window = None if self.window is None else token_count("window", self.window)
        if window is not None and window > length:
            raise LongRopeError(f"window = {window}: above length = {length}. Give a shorter window, or none.")
        count = self.search_documents or default_documents(min(length, window or length))
        count = self.held_out_documents or count if held_out else count
        return SearchTextSpec(lengths, count, self.needles, tail=tail, window=window, seed=int(held_out))

    def method(self, method: str | Method, length: int) -> Method:
        """Return a method with the population of these options, for a target length in tokens.

        Args:
            method: A key of `METHODS`, or a method.
            length: Target length in tokens.

        Raises:
            LongRopeError: If the name is unknown, the population is too small, or the parametrization or more than one
                seed has no effect.
        """
        if isinstance(method, str):
            chosen, name = get_method(method, self.population, length), method
        else:
            chosen = method if self.population is None else method.with_population(self.population)
            name = type(method).__name__
        if self.parametrization is not None and not chosen.uses_parametrization:
            others = [name for name, other in METHODS.items() if other.uses_parametrization]
            raise LongRopeError(
                f"parametrization = {self.parametrization!r}: has no effect on the method {name}. "
                f"Leave it out, or use {', '.join(others)}."
            )
        if self.seeds > 1 and not chosen.draws:
            others = [name for name, other in METHODS.items() if other.draws]
            raise LongRopeError(
                f"seeds = {self.seeds}: the method {name} draws nothing, so all seeds would find the same factors. "
                f"Use 1, or a method that draws ({', '.join(others)})."
            )
        return chosen


def default_documents(length: int) -> int:
    """Return the default number of documents of a search; a long one says as much as several short ones.

    Args:
        length: Length of the documents in tokens.
    """
    return 4 if length <= LONG else 2
