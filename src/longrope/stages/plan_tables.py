"""The tables of a plan: what each may hold, strictly."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from longrope.stages.plan_values import Factors, Method, PlanTable, Schedule, Scheme, Some, Task, Tokens


class Search(PlanTable):
    """How a stage finds its factors; see ``longrope search --help``.

    Args:
        method: one of `longrope.search.registry.METHODS`.
        budget: most token-evaluations; the method's own number if not given.
        documents: whose loss is minimised, and as many others that choose the winner.
        needles: weight of the loss of planted needles.
        population: of the method, or steps of the gradient.
        window: tokens of a forward pass, whose positions then jump up to the stage's length; as long as that if not
            given.
    """

    method: Method = "auto"
    budget: Tokens | None = None
    documents: int = Field(default=4, ge=1)
    needles: float = Field(default=0.2, ge=0, le=1)
    population: int | None = Field(default=None, ge=1)
    window: Tokens | None = None


class Finetune(PlanTable):
    """How a stage trains the weights with its factors in place.

    Args:
        tokens: to train on (or give ``steps``).
        steps: of the optimizer, each of ``batch`` sequences.
        batch: sequences a step, over all devices.
        rate: the highest learning rate of AdamW.
        schedule: of the learning rate, as transformers names it.
        warmup: share of the steps in which the learning rate rises.
        window: tokens of a sequence, below the stage's length: positions then jump, so that all distances occur
            (PoSE); a sequence is as long as the stage if not given.
        short: share of the tokens that are in short documents, of L0 at most, which see the original RoPE and not
            each other (LongRoPE2's mixed windows).
        lora: rank of LoRA on all linear layers; 0 trains all weights.
        dtype: of products, ``bfloat16`` (mixed precision) or ``float32``. Weights that are trained are float32; under
            LoRA the others keep the run's dtype with ``bfloat16``.
        seed: of the order of the data.
        save_every: steps from one checkpoint to the next; a twentieth of all if not given.
    """

    tokens: Tokens | None = None
    steps: int | None = Field(default=None, ge=1)
    batch: int = Field(default=8, ge=1)
    rate: float = Field(default=2e-5, gt=0)
    schedule: Schedule = "cosine"
    warmup: float = Field(default=0.05, ge=0, lt=1)
    window: Tokens | None = None
    short: float = Field(default=0.0, ge=0, lt=1)
    lora: int = Field(default=0, ge=0)
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    seed: int = Field(default=0, ge=0)
    save_every: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_amount(self) -> Finetune:
        if (self.tokens is None) == (self.steps is None):
            found = "neither tokens nor steps" if self.steps is None else "both tokens and steps"
            raise ValueError(f"has {found}; give one of them")
        return self

    def sequence(self, length: int) -> int:
        """Tokens of one sequence in a stage of that length."""
        return self.window or length

    def count(self, length: int) -> int:
        """Steps of the optimizer in a stage of that length."""
        return self.steps or max(1, round((self.tokens or 0) / (self.batch * self.sequence(length))))

    def trained(self, length: int) -> int:
        """Tokens that a stage of that length trains on."""
        return self.count(length) * self.batch * self.sequence(length)


class Stage(PlanTable):
    """One extension: factors for a length, then perhaps fine-tuning with them.

    Args:
        length: in tokens.
        factors: where they come from: ``search``, the name of a scheme (with the plan's attention factor), or a
            factors file.
        search: if they are searched.
        finetune: not given: the stage is search only.
    """

    length: Tokens
    factors: Factors = "search"
    search: Search = Search()
    finetune: Finetune | None = None

    @model_validator(mode="after")
    def _window_fits(self) -> Stage:
        window = self.finetune.window if self.finetune is not None else None
        if window is not None and window >= self.length:
            raise ValueError(
                f"finetune.window = {window} is not below length = {self.length}; take a shorter one, or none"
            )
        return self


class Recovery(PlanTable):
    """The search for short factors on the final model.

    Args:
        lengths: in tokens; L0 and 2·L0 if not given.
        ceiling: the largest factor; that of the long factors if not given.
        search: how.
    """

    lengths: Annotated[tuple[Tokens, ...], Some] = ()
    ceiling: float | None = Field(default=None, gt=1)
    search: Search = Search()


class Data(PlanTable):
    """Documents.

    Args:
        source: of those to search on, hold out and test on, which never overlap (see ``--data`` of the commands).
        train: of those to train on; those of the source that are for searching if not given. A document that is
            held out or tested on is never trained on.
        seed: of the split.
        needles: share of the training sequences in which `key = word word` lines are planted and asked for.
        repeats: how often a stage may see a training document.
    """

    source: str | None = None
    train: str | None = None
    seed: int = Field(default=0, ge=0)
    needles: float = Field(default=0.0, ge=0, le=1)
    repeats: int = Field(default=1, ge=1)


class Evaluation(PlanTable):
    """What is measured in the end on test documents.

    Args:
        lengths: in tokens; L0 and the length of every stage if not given. ``()`` in a TOML file is ``[]``.
        documents: test documents.
        schemes: on the original weights, beside.
        retrieval: tasks, at the lengths at which they fit.
        trials: of each task at each length.
    """

    lengths: Annotated[tuple[Tokens, ...], Some] | None = None
    documents: int = Field(default=4, ge=1)
    schemes: Annotated[tuple[Scheme, ...], Some] = ("yarn", "heuristic")
    retrieval: Annotated[tuple[Task, ...], Some] = ()
    trials: int = Field(default=10, ge=1)
