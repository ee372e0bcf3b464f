"""The documents of a plan: drawn for every stage before any work, so that too little of them is said at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from longrope.data.documents import Document, load_documents
from longrope.data.split import DocumentTokens, draw_tokens, split_documents
from longrope.data.tokenize import encode
from longrope.data.training_windows import Windows
from longrope.data.weighted_text import SearchTextSpec, WeightedText, search_texts
from longrope.rope import Rope
from longrope.search.budget import too_small
from longrope.search.registry import Method, method, planned
from longrope.stages.plan import Plan
from longrope.stages.plan_tables import Search, Stage
from longrope.tasks.prompt_sets import PromptSets, make_prompt_sets

WHOLE = 2**40  # tokens; more than any document has


def method_of(search: Search, items: Sequence[WeightedText]) -> tuple[Method, int]:
    """The method of a search, and about how many token-evaluations it takes.

    Raises:
        LongRopeError: if its population is too small, or its budget is for these items.
    """
    chosen = method(search.method, search.population, max(item.reach for item in items))
    tokens = [len(item.tokens) for item in items]
    if search.budget is not None and search.budget < sum(tokens):
        raise too_small(search.budget, sum(tokens))
    return planned(chosen, tokens, None if search.population else search.budget)


@dataclass(frozen=True)
class RunData:
    """What a plan searches, trains and tests on; the four never share a document.

    Args:
        plan: which documents.
        rope: of the model.
        tokenizer: of the model.
        cache: a folder that keeps tokens.
    """

    plan: Plan
    rope: Rope
    tokenizer: PreTrainedTokenizerBase
    cache: Path

    def check(self) -> None:
        """Draw everything once.

        Raises:
            LongRopeError: if there are too few documents, or too short ones, for a part of the plan, or too little
                budget for them.
        """
        for stage in self.plan.stages:
            if stage.factors == "search":
                method_of(stage.search, self.items(stage.search, [stage.length])["search"])
            if stage.finetune is not None:
                self.windows(stage)
        if self.plan.recovery is not None:
            search = self.plan.recovery.search
            method_of(search, self.items(search, self.recovery_lengths)["search"])
        if self.lengths:
            self.probes()

    @property
    def recovery_lengths(self) -> Sequence[int]:
        """In tokens, of the search for short factors."""
        return self.plan.recovery_lengths(self.rope.original_length)

    @property
    def lengths(self) -> Sequence[int]:
        """In tokens, of the evaluation, in ascending order."""
        return self.plan.evaluation_lengths(self.rope.original_length)

    def items(self, search: Search, lengths: Sequence[int]) -> dict[str, list[WeightedText]]:
        """What a search minimises (``search``) and what chooses its winner (``held_out``)."""
        return {part: self._draw(part, search, lengths)[0] for part in ("search", "held_out")}

    def test(self) -> DocumentTokens:
        """Test documents of the longest length."""
        count, longest = self.plan.evaluation.documents, max(self.lengths)
        return draw_tokens(self._parts["test"], self.tokenizer, length=longest, count=count, cache=self.cache)

    def probes(self) -> PromptSets:
        """The retrieval probes of the evaluation, in test documents, at the lengths at which they fit."""
        how = self.plan.evaluation
        found, _ = make_prompt_sets(how.retrieval, self.lengths, self.tokenizer, self.test().tokens, trials=how.trials)
        return found

    def windows(self, stage: Stage) -> Windows:
        """The training sequences of a stage.

        Raises:
            LongRopeError: if there are too few tokens for it.
        """
        how, data = stage.finetune, self.plan.data
        assert how is not None
        size, count = how.sequence(stage.length), how.batch * how.count(stage.length)
        end = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        found: list[np.ndarray] = []
        left = count * size
        for document in self._training():
            if left <= 0:  # no more of them need be tokenized
                break
            tokens = encode(document.text, self.tokenizer, length=WHOLE, cache=self.cache)
            found.append(np.append(tokens, end).astype(np.int32))
            left -= len(found[-1])
        return Windows(
            found,
            length=stage.length,
            count=count,
            original_length=self.rope.original_length,
            window=how.window,
            short=how.short,
            needles=data.needles,
            tokenizer=self.tokenizer,
            repeats=data.repeats,
            seed=how.seed,
        )

    def _training(self) -> list[Document]:
        """In a seeded random order."""
        parts = self._parts
        kept = {document.text for part in ("held_out", "test") for document in parts[part]}
        plan, searched = self.plan, set()
        for search, lengths in [
            *((stage.search, [stage.length]) for stage in plan.stages if stage.factors == "search"),
            *([] if plan.recovery is None else [(plan.recovery.search, self.recovery_lengths)]),
        ]:
            searched.update(self._draw("search", search, lengths)[1])
        source = parts["search"] if plan.data.train is None else load_documents(plan.data.train)
        kept |= {document.text for document in parts["search"] if document.name in searched}
        left = [document for document in source if document.text not in kept]
        return [left[i] for i in np.random.default_rng(self.plan.data.seed).permutation(len(left))]

    def _draw(self, part: str, search: Search, lengths: Sequence[int]) -> tuple[list[WeightedText], tuple[str, ...]]:
        spec = SearchTextSpec(lengths, search.documents, search.needles, window=search.window)
        return search_texts(self._parts[part], self.tokenizer, spec, cache=self.cache)

    @cached_property
    def _parts(self) -> dict[str, list[Document]]:
        return split_documents(load_documents(self.plan.data.source or "stdlib"), seed=self.plan.data.seed)
