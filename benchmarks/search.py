"""Search methods side by side: loss and test perplexity against token-evaluations, three seeds, on the model ``tiny``.

    make benchmark-search                  # tiny at 8x and 32x; hours on a CPU; continues where it stopped
    python benchmarks/search.py tiny-8x auto gradient
    python benchmarks/search.py smollm2-4x smollm2-8x       # with a GPU

Seed k minimises the loss of search documents of its own. The validation documents choose among the three best
candidates of a search; all are judged on the same test documents. The three kinds are disjoint. Journals are in
``build/search``, results in ``benchmarks/results/search-CASE.json``, the plot in ``docs/images/search-CASE.png``.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from longrope.data.documents import load_documents
from longrope.data.split import draw_tokens, split_documents
from longrope.data.weighted_text import perplexity_texts
from longrope.models.load import load
from longrope.objectives.model_loss import ModelObjective
from longrope.provenance import provenance
from longrope.rope import Rope
from longrope.scaling import Scaling
from longrope.schemes import COMPARED, attention_factor, scheme
from longrope.search.budget import Budget
from longrope.search.evaluator import Evaluator
from longrope.search.find import FINALISTS
from longrope.search.journal import Journal
from longrope.search.loop import SearchOutcome, SearchProgress, run_search
from longrope.search.protocol import CandidateBatch
from longrope.search.registry import METHODS
from longrope.storage.atomic import write_json

BUILD, RESULTS, IMAGES = Path("build/search"), Path(__file__).parent / "results", Path("docs/images")


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
ON_CPU = ("tiny-8x", "tiny-32x")
DASHES = {"paper": [1, 0], "simple": [8, 2], "cma": [6, 2, 2, 2], "gradient": [2, 2], "auto": [1, 0]}
POINTS = (4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Bench:
    """A case with its model, documents and closed forms."""

    def __init__(self, name: str) -> None:
        self.name, self.case = name, CASES[name]
        self.model, self.tokenizer = load(
            self.case.model, dtype="bfloat16", device="cuda" if torch.cuda.is_available() else "cpu"
        )
        self.rope = Rope.of(self.model)
        self.parts = split_documents(load_documents(self.case.data))
        self.schemes = {one: scheme(one, self.rope, self.case.length) for one in COMPARED}
        self.judges = {
            part: self.drawn(part, count)
            for part, count in (("held_out", self.case.validation), ("test", self.case.test))
        }

    def drawn(self, part: str, count: int, skip: int = 0) -> tuple[ModelObjective, list[str]]:
        """Perplexity on some documents of a part, and their names."""
        found = draw_tokens(self.parts[part], self.tokenizer, length=self.case.length, count=skip + count)
        return ModelObjective(self.model, perplexity_texts(found.tokens[skip:])), list(found.names[skip:])

    def objective(self, seed: int) -> tuple[ModelObjective, list[str]]:
        """The search documents of a seed."""
        return self.drawn("search", self.case.search, self.case.search * seed)

    def run(self, method: str, seed: int) -> tuple[SearchOutcome, int, list[str]]:
        """One search; what its journal holds is not computed again."""
        objective, names = self.objective(seed)
        chosen, cost, items = METHODS[method], sum(objective.tokens), self.case.search
        budget = None
        if method in self.case.budget:
            budget = Budget(cost * self.case.budget[method])
            chosen = chosen.within(items * self.case.budget[method], items)
        factor = attention_factor("su", self.rope, self.case.length)
        space = chosen.make_space(self.rope, self.case.length, attention_factor=factor)
        settings = {"case": self.name, "method": method, "seed": seed, "documents": names}
        starts = [self.schemes[one] for one in chosen.schemes]
        conversation = chosen.propose(space, starts, np.random.default_rng(seed))
        with (
            closing(Journal(BUILD / f"{self.name}-{method}-{seed}.jsonl", settings, resume=True)) as journal,
            tqdm(desc=f"{self.name} {method} {seed}", total=chosen.passes(items) / items) as bar,
        ):

            def watch(standing: SearchProgress) -> None:
                bar.update(standing.tokens / cost - bar.n)

            return run_search(objective, conversation, journal, budget=budget, on_progress=watch), cost, names

    def judged(self, part: str, scalings: list[Scaling]) -> list[float]:
        """Losses on the validation (``held_out``) or test documents, kept in a journal too."""
        objective, names = self.judges[part]
        settings = {"case": self.name, "documents": names}
        with closing(Journal(BUILD / f"{self.name}-{part}-{len(names)}.jsonl", settings, resume=True)) as journal:
            answers = Evaluator(objective, journal, budget=Budget()).evaluate(CandidateBatch(scalings))
        return [answer.loss for answer in answers]

    def measure(self, method: str, seed: int) -> dict[str, Any]:
        """The curve of one search; everything in evaluations, which are token-evaluations over the search tokens."""
        outcome, cost, names = self.run(method, seed)
        spent, auto = outcome.tokens / cost, METHODS["auto"].passes(self.case.search) / self.case.search
        points = {point for point in (*POINTS, auto, spent) if outcome.improvements[0].tokens / cost <= point <= spent}
        best = {
            point: [one for one in outcome.improvements if one.tokens <= point * cost][-1] for point in sorted(points)
        }
        losses = self.judged("test", [record.scaling for record in best.values()])
        finalists = [scaling for _, scaling in outcome.ranked[:FINALISTS]]
        validation = self.judged("held_out", finalists)
        winner = finalists[int(np.argmin(validation))]
        return {
            "documents": names,
            "tokens_per_evaluation": cost,
            "evaluations": spent,
            "seconds": round(outcome.seconds, 1),
            "search": [[record.tokens / cost, math.exp(record.loss)] for record in outcome.improvements],
            "test": [[point, math.exp(loss)] for point, loss in zip(best, losses, strict=True)],
            "chosen_on_validation": math.exp(self.judged("test", [winner])[0]),
            "factors": list(winner.factors),
        }


def reached(run: dict[str, Any], perplexity: float) -> float:
    """After how many evaluations a search was at or below a search perplexity; infinite if never."""
    return next((evaluations for evaluations, value in run["search"] if value <= perplexity), math.inf)


def at(curve: list[list[float]], evaluations: float) -> float:
    """A curve's last value at or before that many evaluations."""
    return [value for point, value in curve if point <= evaluations + 1e-6][-1]


def bars(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """How many times cheaper ``auto`` reaches the others' final search loss, and its test perplexity at equal cost."""
    found: dict[str, Any] = {}
    for other in [name for name in runs if name != "auto"]:
        pairs = list(zip(runs["auto"], runs[other], strict=False))
        cheaper = [theirs["evaluations"] / reached(ours, theirs["search"][-1][1]) for ours, theirs in pairs]
        equal = [at(ours["test"], 1e9) / at(theirs["test"], ours["evaluations"]) for ours, theirs in pairs]
        final = [at(ours["test"], 1e9) / at(theirs["test"], 1e9) for ours, theirs in pairs]
        found[other] = {
            "times_cheaper": cheaper,
            "test_perplexity_at_equal_cost": equal,
            "test_perplexity_at_the_end": final,
            "median": {"times_cheaper": median(cheaper), "at_equal_cost": median(equal), "at_the_end": median(final)},
        }
    return found


def plot(name: str, record: dict[str, Any], path: Path) -> None:
    """Perplexity relative to YaRN's against evaluations: the median over seeds, and their range."""
    import altair as alt

    from longrope.report.style import looks
    from longrope.report.svg import save

    styles, charts = looks(record["runs"]), []
    shades = alt.Scale(domain=list(styles), range=[style.colour for style in styles.values()])
    dashes = alt.Scale(domain=list(styles), range=[DASHES[method] for method in styles])
    key = alt.Legend(title=None, symbolType="stroke", symbolSize=400, symbolOpacity=1, columns=5)
    color = alt.Color("method:N", scale=shades, legend=key)
    dash = alt.StrokeDash("method:N", scale=dashes, legend=key)
    x = alt.X("evaluations:Q", title="evaluations (token-evaluations / search tokens)").scale(type="log", nice=False)
    for kind in ("search", "test"):
        records = list(curves(record, kind))
        base = alt.Chart(alt.InlineData(values=records)).encode(x=x.axis(format="~s", tickCount=5))
        y = alt.Y("median:Q", title="perplexity relative to YaRN").scale(zero=False)
        area = base.mark_area(opacity=0.15).encode(color=color, y=alt.Y("low:Q", title=y["title"]), y2="high:Q")
        line = base.mark_line(strokeWidth=2).encode(color=color, y=y, strokeDash=dash)
        yarn = alt.Chart(alt.InlineData(values=[{}])).mark_rule(color="grey").encode(y=alt.datum(1))
        charts.append((area + line + yarn).properties(title=f"{kind} documents", width=380, height=280))
    title = f"{name}: best candidate so far, median and range over seeds"
    save(alt.hconcat(*charts).properties(title=alt.Title(title, offset=12)), path)


def curves(record: dict[str, Any], kind: str) -> Iterator[dict[str, Any]]:
    """Median, lowest and highest over the seeds of each method, relative to YaRN's."""
    for method, runs in record["runs"].items():
        begin, end = max(run[kind][0][0] for run in runs), max(run["evaluations"] for run in runs)
        yarn = record["yarn_search"] if kind == "search" else [record["schemes_test"]["yarn"]] * len(runs)
        for point in np.geomspace(begin, end, 60).tolist():
            values = [at(run[kind], point) / against for run, against in zip(runs, yarn, strict=False)]
            numbers = {"median": median(values), "low": min(values), "high": max(values)}
            yield {"method": method, "evaluations": point, **numbers}


def main(names: list[str], methods: list[str]) -> None:
    """Run what is not done yet; write results and plot of each case."""
    for name in names or ON_CPU:
        bench = Bench(name)
        chosen = [method for method in bench.case.seeds if not methods or method in methods]
        runs = {method: [bench.measure(method, seed) for seed in range(bench.case.seeds[method])] for method in chosen}
        yarn = []
        for seed in range(max(bench.case.seeds.values())):
            pairs = [[(bench.schemes["yarn"], item)] for item in range(bench.case.search)]
            answers = [found[0].loss for _, found in bench.objective(seed)[0].evaluate(pairs, gradient=False)]
            yarn.append(math.exp(np.mean(answers)))
        tested = np.exp(bench.judged("test", list(bench.schemes.values()))).tolist()
        record = {
            "length": bench.case.length,
            "validation_documents": bench.judges["held_out"][1],
            "test_documents": bench.judges["test"][1],
            "schemes_test": dict(zip(bench.schemes, tested, strict=True)),
            "yarn_search": yarn,
            "runs": runs,
            "auto_against": bars(runs) if "auto" in runs else {},
            "provenance": provenance(),
        }
        write_json(RESULTS / f"search-{name}.json", record)
        print(json.dumps(record["auto_against"], indent=1))
        plot(name, record, IMAGES / f"search-{name}.png")


if __name__ == "__main__":
    words = sys.argv[1:]
    main([word for word in words if word in CASES], [word for word in words if word in METHODS])
