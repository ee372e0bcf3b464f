"""A model with documents, in which several benchmarks search and measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import longrope as lr
from longrope.data.questions import ASKED_KINDS
from longrope.data.search_texts import SearchTextSpec, search_texts
from longrope.data.split import DocumentTokens, draw_tokens, split_documents
from longrope.schemes import COMPARED
from longrope.search.loop import SearchProgress
from longrope.search.registry import fit_to_budget
from longrope.search.run import SearchObjectives, SearchRun

BUILD = Path("build/search")


@dataclass(frozen=True)
class Case:
    """A length, numbers of documents (those to search on are each seed's own), and the seeds of each method."""

    length: int
    search: int
    validation: int
    test: int
    seeds: dict[str, int]
    budget: dict[str, int] = field(default_factory=dict)  # evaluations, where it is less than the method's
    model: str = "tiny"
    data: str = "stdlib:unseen"


FEW = {"paper": 1, "cma": 1, "gradient": 1, "auto": 1}
EVERY = {"paper": 3, "simple": 1, "cma": 3, "gradient": 3, "auto": 3}
SMOLLM2 = ("smollm2", "stdlib")
CASES = {
    "tiny-8x": Case(2048, 2, 4, 8, EVERY),
    "tiny-32x": Case(8192, 1, 2, 4, {"paper": 1, "auto": 1}, {"paper": 256}),
    "smollm2-2x": Case(16384, 1, 1, 2, FEW, dict.fromkeys(FEW, 12), *SMOLLM2),
    "smollm2-4x": Case(32768, 2, 2, 4, EVERY, {"paper": 448, "simple": 448}, *SMOLLM2),
    "smollm2-8x": Case(65536, 1, 1, 2, FEW, {"paper": 448}, *SMOLLM2),
}


class SearchBench:
    """A case with its model, documents and closed forms."""

    def __init__(self, name: str) -> None:
        self.name, self.case = name, CASES[name]
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model, self.tokenizer = lr.load(self.case.model, dtype="bfloat16", device=device)
        self.rope = lr.Rope.of(self.model)
        self.splits = split_documents(lr.load_documents(self.case.data))
        self.schemes = {name: lr.scheme(name, self.rope, self.case.length) for name in COMPARED}
        self.validation = self.draw("held_out", self.case.validation)
        self.test = self.draw("test", self.case.test)

    def draw(self, split: str, count: int, skip: int = 0) -> DocumentTokens:
        """Return some documents of a split."""
        drawn = draw_tokens(self.splits[split], self.tokenizer, length=self.case.length, count=skip + count)
        return DocumentTokens(drawn.tokens[skip:], drawn.names[skip:])

    def search_documents(self, seed: int) -> DocumentTokens:
        """Return the search documents of a seed."""
        return self.draw("search", self.case.search, self.case.search * seed)

    def search(
        self,
        name: str,
        method: lr.Method,
        seed: int,
        *,
        evaluations: int | None = None,
        starts: Sequence[lr.Scaling] | None = None,
        needles: float = 0.0,
        kinds: Sequence[str] = ASKED_KINDS,
        **space: Any,
    ) -> tuple[lr.SearchResult, int]:
        """Search on the documents of a seed, within a number of evaluations; do not repeat those in the journal.

        Return the result, and the token-evaluations of one evaluation. The last argument is fields of `Space`.
        """
        length, names = self.case.length, self.search_documents(seed).names
        documents = [document for document in self.splits["search"] if document.name in names]
        spec = SearchTextSpec([length], len(names), needles, seed=seed, kinds=kinds)
        texts, _ = search_texts(documents, self.tokenizer, spec)
        make_objective = partial(lr.ModelObjective, self.model)
        objectives = SearchObjectives.of(make_objective, texts, lr.perplexity_texts(self.validation.tokens))
        cost = sum(objectives.search.tokens)
        budget = None if evaluations is None else cost * evaluations
        fitted, total = fit_to_budget(method, objectives.search.tokens, budget)
        factor = lr.attention_factor("su", self.rope, length)
        with tqdm(desc=f"{name} {seed}", total=total // cost) as bar:

            def report(_: int, progress: SearchProgress) -> None:
                bar.update(progress.tokens / cost - bar.n)

            result = lr.find_factors(
                method.make_space(self.rope, length, **{"attention_factor": factor, **space}),
                objectives,
                BUILD / f"{name.replace(' ', '-')}-{seed}",
                method=fitted,
                starts=starts or [lr.scheme(scheme, self.rope, length) for scheme in method.schemes],
                compared=(),
                run=SearchRun(seeds=(seed,), budget=lr.Budget(budget), existing="resume"),
                on_progress=report,
            )
        return result, cost

    def search_by(self, method: str, seed: int) -> tuple[lr.SearchResult, int]:
        """Search by a method of the case, within the budget of the case."""
        budget = self.case.budget.get(method)
        return self.search(f"{self.name} {method}", lr.METHODS[method], seed, evaluations=budget)

    def perplexities(self, name: str, documents: DocumentTokens, scalings: Sequence[lr.Scaling]) -> list[float]:
        """Return the perplexity of each scaling on some documents; those in the journal are not measured again."""
        candidates = {str(index): scaling for index, scaling in enumerate(scalings)}
        options = lr.EvalOptions(original=False, output=BUILD / f"{self.name}-{name}-{len(documents.names)}")
        length = self.case.length
        results = lr.evaluate(
            self.model, self.tokenizer, candidates, lengths=[length], texts=list(documents.tokens), options=options
        )
        return [results["perplexity"][name][0].perplexity for name in candidates]
