"""The documents of a plan, drawn for every stage before any work, so that a lack of them shows at once."""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from longrope.checks import check_vocabulary
from longrope.data.documents import Document, load_documents, text_digest
from longrope.data.search_texts import search_texts
from longrope.data.sparse_windows import REACH
from longrope.data.split import NO_LIMIT, DocumentTokens, Split, draw_tokens, split_documents, whole_texts
from longrope.data.tokenize import encode
from longrope.data.training_windows import TrainingWindows
from longrope.data.weighted_text import WeightedText
from longrope.data.wordings import KEY_VALUE, WORDINGS
from longrope.errors import CorpusWarning, LongRopeError
from longrope.rope import Rope
from longrope.search.options import SearchOptions
from longrope.stages.average_test import WINDOWS
from longrope.stages.plan import Plan
from longrope.stages.plan_tables import Search, Stage
from longrope.tasks.prompt_sets import PromptSets, make_prompt_sets

log = logging.getLogger("longrope")


def search_options(search: Search, lengths: Sequence[int]) -> SearchOptions:
    """Return the settings of a plan's search at one or more lengths in tokens as those of ``longrope search``."""
    *also, _ = sorted(lengths)
    return SearchOptions(
        budget=search.budget,
        population=search.population,
        needles=search.needles,
        also=also,
        window=search.window,
        search_documents=search.documents,
        held_out_documents=search.documents,
        existing="resume",
    )


def _note_reach(windows: TrainingWindows) -> None:
    """Log one line if all training documents together are shorter than the stage that trains on sparse windows."""
    total = sum(map(len, windows.documents))
    if windows.sparse and total < windows.length:
        log.warning(
            "Note: sparse windows reach %s of %s tokens, as the training documents have no more in all. "
            "Give more documents (data.train).",
            f"{total:,}",
            f"{windows.length:,}",
        )


@dataclass(frozen=True)
class RunData:
    """The documents that a plan searches, holds out, trains and tests on; the four never share a document.

    Args:
        plan: The plan, which names the documents.
        rope: Geometry of the model.
        tokenizer: Tokenizer of the model.
        cache: Folder that keeps tokens.
        vocabulary: Number of rows of the model's embedding.
    """

    plan: Plan
    rope: Rope
    tokenizer: PreTrainedTokenizerBase
    cache: Path
    vocabulary: int

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the names, texts and splits of all documents."""
        hashed = hashlib.sha256()
        sets = {**self._splits, "train": self._load_train()}
        for name, documents in sets.items():
            for document in documents:
                hashed.update(json.dumps([name, document.name, document.text]).encode())
        return hashed.hexdigest()

    def check(self) -> None:
        """Draw all documents once.

        Raises:
            LongRopeError: If there are too few documents, or too short ones, for a step of the plan, too little
                budget for them, or tokens that the model has no embedding for.
        """
        tokens: list[np.ndarray] = []
        for search, lengths in self._searches:
            options = search_options(search, lengths)
            options.method(search.method, max(lengths))
            samples = self.samples(search, lengths)
            options.limits.check_step(sum(len(text.tokens) for text in samples["search"]))
            tokens += [sample.tokens for split in samples.values() for sample in split]
        for stage in self.plan.stages:
            if stage.finetune is not None:
                windows = self.windows(stage)
                _note_reach(windows)
                tokens += windows.documents
                if stage.finetune.average == "auto":
                    tokens += self.held_out_windows(stage).documents
        if self.evaluation_lengths:
            self.prompts()
            tokens.append(self.test_documents().tokens)
        check_vocabulary(tokens, self.vocabulary, self.tokenizer)

    @property
    def recovery_lengths(self) -> Sequence[int]:
        """Lengths of the search for short factors, in tokens."""
        return self.plan.recovery_lengths(self.rope.original_length)

    @property
    def evaluation_lengths(self) -> Sequence[int]:
        """Lengths of the evaluation in tokens, in ascending order."""
        return self.plan.evaluation_lengths(self.rope.original_length)

    def samples(self, search: Search, lengths: Sequence[int]) -> dict[str, list[WeightedText]]:
        """Return the samples that a search minimises (``search``) and those that choose its winner (``held_out``)."""
        return {split: self._draw(split, search, lengths)[0] for split in ("search", "held_out")}

    def test_documents(self) -> DocumentTokens:
        """Return the test documents, cut to the longest length."""
        return self.long_documents("test", max(self.evaluation_lengths), self.plan.evaluation.documents)

    def long_documents(self, split: str, length: int, count: int) -> DocumentTokens:
        """Return documents of a split, cut to a length in tokens.

        Raises:
            LongRopeError: If there are fewer of that length.
        """
        return draw_tokens(self._splits[split], self.tokenizer, length=length, count=count, cache=self.cache)

    def count_long(self, split: str, length: int, most: int) -> int:
        """Return the number of documents of a length, up to ``most``; long ones count several times."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CorpusWarning)
            for count in range(most, 0, -1):
                try:
                    self.long_documents(split, length, count)
                except LongRopeError:
                    continue
                return count
        return 0

    def training_tokens(self, most: int) -> int:
        """Return the number of tokens of the training documents, counted no further than ``most``."""
        return min(most, sum(map(len, self._tokenized(most))))

    def prompts(self) -> PromptSets:
        """Return the retrieval prompts of the evaluation, within test documents, at the lengths at which they fit."""
        evaluation, documents = self.plan.evaluation, self.test_documents()
        prompts, _ = make_prompt_sets(
            evaluation.retrieval,
            self.evaluation_lengths,
            self.tokenizer,
            documents.tokens,
            trials=evaluation.trials,
            questions=evaluation.questions,
        )
        return prompts

    def windows(self, stage: Stage) -> TrainingWindows:
        """Return the training sequences of a stage.

        Raises:
            LongRopeError: If the documents have too few tokens.
        """
        finetune, data = stage.finetune, self.plan.data
        assert finetune is not None
        count = finetune.batch * finetune.step_count(stage.length)
        sparse = finetune.windows == "sparse"
        least = round(REACH * stage.length) if sparse else 0
        return TrainingWindows(
            self._tokenized(max(least, count * finetune.sequence_length(stage.length))),
            length=stage.length,
            count=count,
            original_length=self.rope.original_length,
            window=finetune.window,
            sparse=sparse,
            short=finetune.short,
            skipped=finetune.distill.skipped if finetune.distill is not None else 0.0,
            needles=data.needles,
            wordings=WORDINGS if data.wordings == "several" else (KEY_VALUE,),
            answer_weight=finetune.answers,
            tokenizer=self.tokenizer,
            repeats=data.repeats,
            seed=finetune.seed,
        )

    def held_out_windows(self, stage: Stage) -> TrainingWindows:
        """Return windows of held-out documents like those that a stage trains on, half of them short rows.

        Raises:
            LongRopeError: If the documents have too few tokens.
        """
        windows = self.windows(stage)
        documents = self._tokenized(max(windows.length, WINDOWS * windows.size), self._splits["held_out"])
        tokens = sum(map(len, documents))
        if tokens < windows.size:
            raise LongRopeError(
                f"data.source: the held-out documents have {tokens:,} tokens, fewer than the window of "
                f"{windows.size:,} on which weights or factors are compared. Give more documents, a shorter "
                'finetune.window, or a number for finetune.average instead of "auto".'
            )
        return replace(
            windows,
            documents=documents,
            count=WINDOWS,
            short=0.5,
            skipped=0.0,
            needles=0.0,
            answer_weight=1.0,
            repeats=WINDOWS,
        )

    def _tokenized(self, count: int, source: Sequence[Document] | None = None) -> list[np.ndarray]:
        """Return documents as token ids, each with its end; no more of them than ``count`` tokens need.

        Args:
            count: Number of tokens.
            source: The documents; the training documents if None.
        """
        end = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        documents: list[np.ndarray] = []
        for document in self._training_documents() if source is None else source:
            if count <= 0:
                break
            tokens = encode(document.text, self.tokenizer, length=NO_LIMIT, cache=self.cache)
            documents.append(np.append(tokens, end).astype(np.int32))
            count -= len(documents[-1])
        return documents

    def _training_documents(self) -> list[Document]:
        """Return the training documents in a seeded random order."""
        splits = self._splits
        excluded = {text_digest(document.text) for split in ("held_out", "test") for document in splits[split]}
        searched: set[str] = set()
        for search, lengths in self._searches:
            searched.update(self._draw("search", search, lengths)[1])
        excluded |= {text_digest(document.text) for document in splits["search"] if document.name in searched}
        cut = {document.part_of for split in splits.values() for document in split} - {""}
        excluded |= {text_digest(text) for name, text in whole_texts(splits).items() if name in cut}
        source = splits["search"] if self.plan.data.train is None else self._load_train()
        documents = [document for document in source if text_digest(document.text) not in excluded]
        order = np.random.default_rng(self.plan.data.seed).permutation(len(documents))
        return [documents[i] for i in order]

    @property
    def _searches(self) -> list[tuple[Search, Sequence[int]]]:
        """All searches of the plan, each with its lengths."""
        stages = [stage for stage in self.plan.stages if stage.factors == "search"]
        searches: list[tuple[Search, Sequence[int]]] = [(stage.search, [stage.length]) for stage in stages]
        if self.plan.recovery is not None:
            searches.append((self.plan.recovery.search, self.recovery_lengths))
        return searches

    def _draw(self, split: str, search: Search, lengths: Sequence[int]) -> tuple[list[WeightedText], tuple[str, ...]]:
        spec = search_options(search, lengths).text_spec(max(lengths), held_out=split == "held_out")
        return search_texts(self._splits[split], self.tokenizer, spec, cache=self.cache)

    def _load(self, source: str) -> list[Document]:
        return load_documents(source, text_key=self.plan.data.text_key)

    def _load_train(self) -> list[Document]:
        """Return the documents of ``data.train``; none if it is not given."""
        return [] if self.plan.data.train is None else self._load(self.plan.data.train)

    @cached_property
    def _splits(self) -> dict[str, Split]:
        return split_documents(self._load(self.plan.data.source or "stdlib"), seed=self.plan.data.seed)
