"""The tables of a plan, with their keys, default values and limits."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from longrope.search import NEEDLE_WEIGHT
from longrope.stages.plan_values import (
    Average,
    Factors,
    FromList,
    Method,
    PlanTable,
    Rate,
    Schedule,
    Scheme,
    Task,
    Tokens,
)


class Search(PlanTable):
    """The search of a stage's factors; see ``longrope search --help``.

    Args:
        method: Search method, a key of `longrope.search.registry.METHODS`.
        budget: Most token-evaluations; the method's own number if not given.
        documents: Number of documents whose loss is minimised, and of others that choose the winner; by default 4, or
            2 above 8,192 tokens.
        needles: Weight of the loss of answers to questions at the end of the documents.
        population: Population of the method, or number of gradient steps.
        window: Tokens of a forward pass, whose positions then jump up to the stage's length; that length if not given.
    """

    method: Method = "auto"
    budget: Tokens | None = None
    documents: int | None = Field(default=None, ge=1)
    needles: float = Field(default=NEEDLE_WEIGHT, ge=0, le=1)
    population: int | None = Field(default=None, ge=1)
    window: Tokens | None = None


class Distill(PlanTable):
    """The original model as a teacher, whose distribution and hidden states are kept on short sequences.

    Args:
        weight: Share of the cross-entropy to the teacher's distribution in the loss of sequences within L0; the rest is
            the loss of the text. With 1 they train on the teacher alone.
        hidden: Weight of one minus the cosine between the hidden states and the teacher's, a mean over layers, beside
            that loss (after LongReD, arXiv 2502.07365). With ``weight`` and ``hidden`` 0 no teacher is loaded.
        skipped: Share of the short sequences whose positions jump once, up to the stage's length, and which the teacher
            reads without the jump (after LongReD's short-to-long distillation).
        teacher: Name or folder of the teacher, with the same tokenizer; the plan's original model if not given.
    """

    weight: float = Field(default=1.0, ge=0, le=1)
    hidden: float = Field(default=0.0, ge=0)
    skipped: float = Field(default=0.0, ge=0, le=1)
    teacher: str | None = None

    @property
    def has_teacher(self) -> bool:
        """Whether a teacher is loaded."""
        return self.weight > 0 or self.hidden > 0

    @model_validator(mode="after")
    def _skipped_is_taught(self) -> Distill:
        if self.skipped and not self.has_teacher:
            raise ValueError(
                f"skipped = {self.skipped:g} needs a teacher, but weight = 0 and hidden = 0; give one, or no skipped"
            )
        return self


class Finetune(PlanTable):
    """The training of the weights with a stage's factors in place.

    Args:
        tokens: Tokens to train on (or give ``steps``).
        steps: Optimizer steps, each of ``batch`` sequences.
        batch: Sequences per step, over all devices.
        rate: Highest learning rate of AdamW, or ``auto``: a few steps at each of several rates choose it.
        schedule: Schedule of the learning rate, as transformers names it.
        warmup: Share of the steps in which the learning rate rises.
        window: Tokens of a sequence, below the stage's length. A sequence is as long as the stage if not given.
        windows: Positions in a window: ``jump`` once (PoSE), or ``sparse``, chunks of one text at their own positions
            whose keys weigh as many tokens as they stand for.
        short: Share of the tokens in short documents, of L0 at most, which see the original RoPE and not each other
            (LongRoPE2's mixed windows).
        answers: Weight in the loss of the answers of planted lines (``data.needles``), beside 1 for other tokens.
        distill: Distillation from the original model on short sequences; without it their loss is that of the text.
        average: Share of the original model in the weights that the stage leaves, but those of queries and keys, from
            0 to 1. More of it is better for short sequences and worse for long ones. ``auto`` takes the share with
            the lowest loss on held-out documents, of short rows and long windows.
        lora: Rank of LoRA on all linear layers; 0 trains all weights.
        merge: Whether LoRA's adapter becomes part of the weights. If not, it is switched with the factors: up to L0
            the model is the original one. Only the one fine-tuning of a plan can leave an adapter.
        dtype: Dtype of products, ``bfloat16`` (mixed precision) or ``float32``. Weights that are trained are float32;
            under LoRA the others keep the run's dtype with ``bfloat16``.
        seed: Seed of the order of the data.
        save_every: Steps from one checkpoint to the next; a twentieth of all if not given.
    """

    tokens: Tokens | None = None
    steps: int | None = Field(default=None, ge=1)
    batch: int = Field(default=8, ge=1)
    rate: Rate = 2e-5
    schedule: Schedule = "cosine"
    warmup: float = Field(default=0.05, ge=0, lt=1)
    window: Tokens | None = None
    windows: Literal["jump", "sparse"] = "jump"
    short: float = Field(default=0.0, ge=0, lt=1)
    answers: float = Field(default=1.0, gt=0)
    distill: Distill | None = None
    average: Average = 0.0
    lora: int = Field(default=0, ge=0)
    merge: bool = True
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    seed: int = Field(default=0, ge=0)
    save_every: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_amount(self) -> Finetune:
        if (self.tokens is None) == (self.steps is None):
            amounts = "neither tokens nor steps" if self.steps is None else "both tokens and steps"
            raise ValueError(f"has {amounts}; give one of them")
        if self.windows == "sparse" and self.window is None:
            raise ValueError('windows = "sparse" needs window, the tokens of one; window = "2k" suits most models')
        if not self.merge and not self.lora:
            raise ValueError("merge = false, but lora = 0 trains no adapter; give its rank, such as lora = 8")
        if not self.merge and self.average:
            raise ValueError(f"average = {self.average} needs merged weights; leave out average, or merge = false")
        if self.distill is not None and not self.short:
            raise ValueError("distill works on short sequences, but short = 0; give their share, such as 0.5")
        return self

    def sequence_length(self, stage_length: int) -> int:
        """Return the tokens of one training sequence in a stage of that length."""
        return self.window or stage_length

    def step_count(self, stage_length: int) -> int:
        """Return the optimizer steps in a stage of that length."""
        return self.steps or max(1, round((self.tokens or 0) / (self.batch * self.sequence_length(stage_length))))

    def token_count(self, stage_length: int) -> int:
        """Return the tokens that a stage of that length trains on."""
        return self.step_count(stage_length) * self.batch * self.sequence_length(stage_length)


class Stage(PlanTable):
    """One extension: factors for a length, then perhaps fine-tuning with them.

    Args:
        length: Target length in tokens.
        factors: Source of the factors: ``search``, the name of a scheme (with the plan's attention factor), or a
            factors file.
        search: Settings of the search.
        finetune: Settings of the fine-tuning; without them the stage is search only.
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
        lengths: Lengths in tokens; if not given, L0 and, where the plan reaches it, 2·L0.
        ceiling: Largest factor; that of the long factors if not given.
        search: Settings of the search.
    """

    lengths: Annotated[tuple[Tokens, ...], FromList] = ()
    ceiling: float | None = Field(default=None, gt=1)
    search: Search = Search()


class Data(PlanTable):
    """The documents of a plan.

    Args:
        source: Documents to search on, hold out and test on, which never overlap (see ``--data`` of the commands).
        train: Documents to train on; the source's search documents if not given. A document that is held out or tested
            on is never trained on.
        text_key: Key or column of the text in JSON, ``.csv`` and ``.parquet``; ``text`` if not given.
        seed: Seed of the split.
        needles: Share of the training sequences in which lines are planted and asked for.
        wordings: ``one``: planted lines are `key = word word`, and are asked for by repeating them. ``several``: also
            sentences and entries, with questions, some of them in other words.
        repeats: Number of times that a stage may see a training document.
    """

    source: str | None = None
    train: str | None = None
    text_key: str | None = None
    seed: int = Field(default=0, ge=0)
    needles: float = Field(default=0.0, ge=0, le=1)
    wordings: Literal["one", "several"] = "one"
    repeats: int = Field(default=1, ge=1)


class FinalEvaluation(PlanTable):
    """The measurements at the end, on test documents.

    Args:
        lengths: Lengths in tokens; L0 and the length of every stage if not given. ``()`` in a TOML file is ``[]``.
        documents: Number of test documents.
        schemes: Schemes to compare with, on the original weights.
        retrieval: Retrieval tasks, at the lengths at which they fit.
        trials: Questions of each task at each length.
        questions: Questions that each text is asked. A text passes through the model once for all of them.
        stages: Whether each stage is measured before and after its fine-tuning, beside the schemes and the result.
    """

    lengths: Annotated[tuple[Tokens, ...], FromList] | None = None
    documents: int = Field(default=4, ge=1)
    schemes: Annotated[tuple[Scheme, ...], FromList] = ("yarn", "heuristic")
    retrieval: Annotated[tuple[Task, ...], FromList] = ()
    trials: int = Field(default=10, ge=1)
    questions: int = Field(default=1, ge=1)
    stages: bool = True
