from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import families
import numpy as np
import pytest
from searching import Documents
from transformers import PreTrainedModel

from longrope.data.weighted_text import WeightedText, mix_texts, perplexity_texts
from longrope.errors import LongRopeError
from longrope.evaluation.losses import model_losses
from longrope.formats.load_factors import load_factors
from longrope.objectives.full_passes import objectives_as_before
from longrope.objectives.model_loss import ModelObjective
from longrope.objectives.prepare_search import prepare_objectives
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling
from longrope.schemes import attention_factor, scheme
from longrope.search import find as module
from longrope.search.auto import Auto, ramps
from longrope.search.budget import Budget
from longrope.search.cma import Cma
from longrope.search.evaluator import Improvement
from longrope.search.evolution import Paper, Simple
from longrope.search.find import FINALISTS, find_factors
from longrope.search.gradient import Gradient
from longrope.search.loop import SearchOutcome, SearchProgress
from longrope.search.method import Method
from longrope.search.options import SearchOptions
from longrope.search.protocol import Batch, CandidateLoss, Objective
from longrope.search.registry import METHODS as ALL
from longrope.search.run import SearchObjectives, SearchResult, SearchRun, data_hash
from longrope.search.space import Space

LENGTH, SCHEMES = 160, ("pi", "ntk", "yarn", "heuristic")
ROPE = Rope(dim=16, base=10000.0, original_length=64)
METHODS: dict[str, Method] = {
    "auto": Auto(ramps=2, gradient=Gradient(steps=3)),
    "gradient": Gradient(steps=4),
    "cma": Cma(population=4, generations=3),
    "paper": Paper(generations=3).with_population(8),
    "simple": Simple(generations=2).with_population(8),
}
TOKENS = {"search": families.tokens(5, LENGTH)[:2].numpy(), "held_out": families.tokens(5, LENGTH)[2:].numpy()}
ITEMS = {part: perplexity_texts(tokens) for part, tokens in TOKENS.items()}
ONCE = TOKENS["search"].size  # token-evaluations of one candidate
SETTINGS = {"model": "llama", "dtype": "torch.float32"}
Searched = tuple[SearchResult, Path]
MakeObjective = Callable[[Sequence[WeightedText]], Objective]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return families.build("llama", num_hidden_layers=1)


def space_of(name: str, **fields: object) -> Space:
    return METHODS[name].make_space(ROPE, LENGTH, **fields)


def find(
    model: PreTrainedModel,
    run: Path,
    *,
    name: str = "paper",
    space: dict[str, object] | None = None,
    make_objective: MakeObjective | None = None,
    items: dict[str, list[WeightedText]] = ITEMS,
    objectives: SearchObjectives | None = None,
    **fields: object,
) -> SearchResult:
    """A search of 14 evaluations, a forward and backward pass being three."""
    searched = space_of(name, **(space or {}))
    objectives = objectives or SearchObjectives.of(
        make_objective or partial(ModelObjective, model), items["search"], items["held_out"]
    )
    starts = [scheme(scheme_name, searched.rope, searched.length) for scheme_name in METHODS[name].schemes]
    how = {field: fields.pop(field) for field in SearchRun.__dataclass_fields__ if field in fields}
    how["budget"] = how.get("budget", Budget(14 * ONCE)) or Budget()
    return find_factors(
        searched, objectives, run, method=METHODS[name], **{"starts": starts, "run": SearchRun(**how), **fields}
    )


def documents(items: Sequence[WeightedText]) -> Documents:
    """An objective in microseconds, for what does not depend on the model."""
    return Documents((LENGTH,) * len(items))


@pytest.fixture(scope="module")
def searched(model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Searched]:
    """The result of a search with a method and its folder, which is not to be changed."""

    @cache
    def search(name: str) -> Searched:
        folder = tmp_path_factory.mktemp(name) / "new" / "run"
        return find(model, folder, name=name, settings=SETTINGS), folder

    return search


@pytest.fixture
def copied(searched: Callable[[str], Searched], tmp_path: Path) -> Callable[[str], Searched]:
    """The same in a folder of the test's own."""

    def copy(name: str) -> Searched:
        found, folder = searched(name)
        return found, Path(shutil.copytree(folder, tmp_path / "copied"))

    return copy


def loss_of(model: PreTrainedModel, part: str, scaling: Scaling) -> float:
    return float(model_losses(model, scaling, TOKENS[part]).mean(dtype=np.float64))


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()][1:]


def scaling_of(line: dict) -> Scaling:
    return Scaling(line["factors"], attention_factor=line["attention_factor"], start_tokens=line["start_tokens"])


def key(scaling: Scaling) -> tuple[object, ...]:
    return tuple(scaling.factors), scaling.attention_factor, scaling.start_tokens


Standing = tuple[float, tuple[object, ...]]


def replayed(journal: Path) -> tuple[list[Standing], list[tuple[object, ...]]]:
    """From a journal alone: candidates by loss, and the best when half of the token-evaluations were spent."""
    spent, losses, complete, standings = 0, {}, {}, []
    for line in lines_of(journal):
        if "generation" in line:
            standings.append((spent, by_loss(complete)[:1]))
            continue
        spent += LENGTH * (3 if "gradient" in line else 1)
        name = key(scaling_of(line))
        losses.setdefault(name, {})[line["item"]] = line["loss"]
        if len(losses[name]) == 2:
            complete.setdefault(name, float(np.mean(list(losses[name].values()))))
    early = [best for at, best in standings if 2 * at <= spent]
    return by_loss(complete), [name for _, name in early[-1]] if early else []


def by_loss(complete: dict[tuple[object, ...], float]) -> list[Standing]:
    return sorted(((loss, name) for name, loss in complete.items()), key=lambda one: one[0])


def test_the_methods_are_all_there() -> None:
    assert {name: type(method) for name, method in METHODS.items()} == {name: type(ALL[name]) for name in ALL}


@pytest.mark.parametrize("name", METHODS)
def test_the_winner_has_the_lowest_held_out_loss(
    model: PreTrainedModel, searched: Callable[[str], Searched], name: str
) -> None:
    found, folder = searched(name)
    ranked, early = replayed(folder / "search-0.jsonl")
    finalists = {*list(dict.fromkeys(name for _, name in ranked))[:FINALISTS], *early}
    names = dict.fromkeys([*SCHEMES, *METHODS[name].schemes])
    schemes = {one: scheme(one, ROPE, LENGTH) for one in names}
    compared = {key(scaling_of(line)) for line in lines_of(folder / "held-out.jsonl") if "loss" in line}
    assert compared == finalists | {key(one) for one in schemes.values()}
    losses = {one: loss_of(model, "held_out", Scaling(one[0], attention_factor=one[1])) for one in compared}
    assert key(found.extension.long) == min(losses, key=losses.__getitem__)
    assert list(found.held_out.values()) == sorted(found.held_out.values())
    assert set(found.held_out) == {"searched", *names}
    for one in names:
        assert found.held_out[one] == pytest.approx(losses[key(schemes[one])], abs=1e-6)
    assert found.held_out["searched"] == pytest.approx(min(losses[one] for one in finalists), abs=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_what_the_folder_holds(model: PreTrainedModel, searched: Callable[[str], Searched], name: str) -> None:
    found, folder = searched(name)
    names = {"search-0.jsonl", "held-out.jsonl", "best.json", "extension.json"}
    assert {path.name for path in folder.iterdir()} == names
    extension = load_factors(folder / "extension.json")
    assert extension == found.extension
    assert isinstance(extension, Extension)
    assert extension.rope == Rope.of(model)
    assert extension.length == LENGTH
    assert extension.short == Scaling.identity(extension.rope)
    assert load_factors(folder / "best.json") == found.outcomes[0].best


@pytest.mark.parametrize("name", ["auto", "paper"])
def test_provenance_can_be_recomputed(model: PreTrainedModel, searched: Callable[[str], Searched], name: str) -> None:
    found, folder = searched(name)
    provenance = json.loads((folder / "extension.json").read_text())["long"]["provenance"]
    assert provenance == json.loads(json.dumps(found.extension.long.provenance))
    assert (provenance["model"], provenance["dtype"], provenance["seeds"]) == ("llama", "torch.float32", [0])
    assert list(provenance["method"]) == [type(METHODS[name]).__name__]
    lines = [line for line in lines_of(folder / "search-0.jsonl") if "loss" in line]
    assert provenance["token_evaluations"] == LENGTH * sum(3 if "gradient" in line else 1 for line in lines)
    pairs = {(key(scaling_of(line)), line["item"]) for line in lines}
    assert provenance["evaluations"] == sum((name, 1) in pairs for name, item in pairs if item == 0)
    assert provenance["search_loss"] == pytest.approx(loss_of(model, "search", found.outcomes[0].best), abs=1e-6)
    assert provenance["held_out_loss"] == pytest.approx(dict(found.held_out))
    yarn = loss_of(model, "held_out", scheme("yarn", ROPE, LENGTH))
    assert provenance["held_out_loss"]["yarn"] == pytest.approx(yarn, abs=1e-6)
    closed_forms = {"auto": {"yarn", "heuristic", *(one.scheme for one in ramps(space_of(name))[:2])}}
    assert provenance["closed_form"] in closed_forms.get(name, {""})


@pytest.mark.parametrize(("name", "written"), [("auto", False), ("gradient", False), ("cma", False), ("paper", None)])
def test_the_journal_says_whether_contexts_are_used(
    searched: Callable[[str], Searched], name: str, written: bool | None
) -> None:
    """Not on short items; other methods never ask for any."""
    for file in ("search-0.jsonl", "held-out.jsonl"):
        settings = json.loads((searched(name)[1] / file).read_text().splitlines()[0])["settings"]
        assert settings.get("frozen_contexts") == written


class Contexts:
    """The model's loss, which says that a pass in contexts costs a token, and runs full passes in them."""

    def __init__(self, model: PreTrainedModel, items: Sequence[WeightedText]) -> None:
        self.model = ModelObjective(model, items)
        self.tokens, self.context_tokens = self.model.tokens, (1,) * len(items)
        self.keeps_contexts = False

    def release_contexts(self) -> None:
        self.keeps_contexts = False

    def evaluate(self, batches: Sequence[Batch], *, gradient: bool) -> Iterator[tuple[int, list[CandidateLoss]]]:
        return self.model.evaluate(batches, gradient=gradient)

    def evaluate_in_context(
        self, batches: Sequence[Batch], *, gradient: bool, reference: Scaling
    ) -> Iterator[tuple[int, list[CandidateLoss]]]:
        self.keeps_contexts = True
        return self.model.evaluate(batches, gradient=gradient)


@pytest.mark.parametrize("name", ["auto", "gradient", "cma"])
def test_a_search_in_contexts_is_not_resumed_without_them(model: PreTrainedModel, tmp_path: Path, name: str) -> None:
    found = find(model, tmp_path, name=name, make_objective=partial(Contexts, model))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(LongRopeError, match=r"other settings: .*frozen_contexts"):
        find(model, tmp_path, name=name, existing="resume")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    again = find(model, tmp_path, name=name, make_objective=partial(Contexts, model), existing="resume")
    assert (again.held_out, again.outcomes[0].ranked) == (found.held_out, found.outcomes[0].ranked)
    assert again.outcomes[0].tokens == found.outcomes[0].tokens


def test_a_resumed_search_has_contexts_as_it_began(model: PreTrainedModel, tmp_path: Path) -> None:
    """Whatever room there is for them now."""
    with_contexts, without = partial(Contexts, model), partial(ModelObjective, model)
    for name, began in (("with", with_contexts), ("without", without)):
        found = find(model, tmp_path / name, name="auto", make_objective=began)
        as_before = partial(objectives_as_before, samples=ITEMS, resumed=tmp_path / name)
        if name == "with":
            with pytest.raises(LongRopeError, match="began with frozen contexts, and now has no room for them"):
                as_before(without)
        objectives = as_before(with_contexts)
        again = find(model, tmp_path / name, name="auto", objectives=objectives, existing="resume")
        assert (again.held_out, again.outcomes[0].tokens) == (found.held_out, found.outcomes[0].tokens)


@pytest.mark.parametrize("has_room", [True, False])
def test_held_out_contexts_are_decided_before_the_search_and_written(
    model: PreTrainedModel, tmp_path: Path, has_room: bool
) -> None:
    """A resumed search decides the same, whatever room there is by then."""
    search = Contexts(model, ITEMS["search"])

    class HeldOut(Contexts):
        """Contexts for which there is no room while the search keeps its own."""

        @property
        def context_tokens(self) -> Sequence[int]:
            return (1,) * 3 if has_room and not search.keeps_contexts else ()

        @context_tokens.setter
        def context_tokens(self, _: Sequence[int]) -> None:
            pass

    objectives = SearchObjectives(search, HeldOut(model, ITEMS["held_out"]), {"search": "a", "held_out": "b"})
    found = find(model, tmp_path, name="auto", objectives=objectives)
    assert search.keeps_contexts is False
    header = json.loads((tmp_path / "held-out.jsonl").read_text().splitlines()[0])["settings"]
    assert header["held_out_contexts"] is has_room
    assert any("context" in line for line in lines_of(tmp_path / "held-out.jsonl")) == has_room
    as_before = replace(objectives_as_before(partial(Contexts, model), ITEMS, tmp_path), hashes=objectives.hashes)
    assert find(model, tmp_path, name="auto", objectives=as_before, existing="resume").held_out == found.held_out


def test_an_older_file_that_does_not_say_how_it_judges_is_resumed(model: PreTrainedModel, tmp_path: Path) -> None:
    found = find(model, tmp_path, name="auto", make_objective=partial(Contexts, model))
    path = tmp_path / "held-out.jsonl"
    path.write_text(path.read_text().replace(', "held_out_contexts": true', ""))
    assert "held_out_contexts" not in path.read_text()
    objectives = objectives_as_before(partial(Contexts, model), ITEMS, tmp_path)
    assert find(model, tmp_path, name="auto", objectives=objectives, existing="resume").held_out == found.held_out


def test_workers_do_not_resume_a_search_in_contexts(model: PreTrainedModel, tmp_path: Path) -> None:
    find(model, tmp_path, name="auto", make_objective=partial(Contexts, model))
    with pytest.raises(LongRopeError, match=r"which workers do not have\. Resume it with workers = 1 or begin again"):
        objectives_as_before(lambda _: Documents(), ITEMS, tmp_path)


def test_batch_and_racing_have_no_effect_in_contexts(model: PreTrainedModel, caplog: pytest.LogCaptureFixture) -> None:
    options = SearchOptions(batch_size=4, racing=True)
    for make_objective, batch_size in ((Contexts, 1), (ModelObjective, 4)):
        caplog.clear()
        objectives = SearchObjectives.of(partial(make_objective, model), ITEMS["search"], ITEMS["held_out"])
        prepared = prepare_objectives(space_of("auto"), objectives, METHODS["auto"], options, settings={})
        assert prepared.run.batch_size == batch_size
        assert ("batch and racing have no effect" in caplog.text) == (batch_size == 1)


def test_a_method_without_contexts_judges_its_starts_by_full_passes(model: PreTrainedModel, tmp_path: Path) -> None:
    start = Scaling([2.123456] * 8, scheme="start", length=LENGTH)  # which the method rounds
    found = find(model, tmp_path, make_objective=partial(Contexts, model), starts=[start])
    assert "start" in found.held_out


@pytest.mark.parametrize("name", ["auto", "gradient", "cma"])
def test_in_contexts_the_best_and_three_leaders_are_judged_by_full_passes(
    model: PreTrainedModel, tmp_path: Path, name: str
) -> None:
    """These contexts rank as full passes do. One searched candidate is judged besides that of the first half."""
    found = find(model, tmp_path, name=name, make_objective=partial(Contexts, model))
    lines = [line for line in lines_of(tmp_path / "held-out.jsonl") if "loss" in line]
    full = dict.fromkeys(key(scaling_of(line)) for line in lines if "context" not in line)
    ranked = dict.fromkeys(key(scaling_of(line)) for line in lines if "context" in line)
    assert next(iter(full)) == key(found.outcomes[0].best)
    losses = {one: loss_of(model, "held_out", Scaling(one[0], attention_factor=one[1])) for one in [*full, *ranked]}
    assert set(full) == {key(found.outcomes[0].best), *sorted(ranked, key=losses.__getitem__)[:3]}
    assert set(ranked) >= {key(scheme(one, ROPE, LENGTH)) for one in SCHEMES} - {next(iter(full))}
    assert key(found.extension.long) == min(full, key=losses.__getitem__)
    assert len(ranked) <= 1 + len({*SCHEMES, *METHODS[name].schemes})


@pytest.mark.parametrize("name", METHODS)
def test_the_budget_is_not_exceeded(model: PreTrainedModel, tmp_path: Path, name: str) -> None:
    for i, tokens in enumerate((4 * ONCE, 6 * ONCE + 100, 9 * ONCE - 1)):
        (outcome,) = find(model, tmp_path / str(i), name=name, budget=Budget(tokens), make_objective=documents).outcomes
        assert tokens - 3 * LENGTH < outcome.tokens <= tokens
        assert outcome.stopped == f"the budget of {tokens:,} token-evaluations is spent"


@pytest.mark.parametrize("name", METHODS)
def test_a_budget_below_one_candidate_is_refused(model: PreTrainedModel, tmp_path: Path, name: str) -> None:
    with pytest.raises(
        LongRopeError, match=f"budget = {ONCE - 1}: one step of this search takes {ONCE} token-evaluations"
    ):
        find(model, tmp_path / "run", name=name, budget=Budget(ONCE - 1))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["auto", "paper"])
def test_the_model_is_what_it_was(model: PreTrainedModel, tmp_path: Path, name: str) -> None:
    before = families.logits(model, families.tokens(1, LENGTH))
    find(model, tmp_path, name=name)
    assert (families.logits(model, families.tokens(1, LENGTH)) == before).all()
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", ["cma", "paper", "simple"])
def test_several_seeds(model: PreTrainedModel, tmp_path: Path, name: str) -> None:
    found = find(model, tmp_path, name=name, seeds=(0, 1, 2))
    assert len(found.outcomes) == 3
    assert len({outcome.ranked for outcome in found.outcomes}) == 3
    assert sorted(path.name for path in tmp_path.glob("search-*")) == [f"search-{seed}.jsonl" for seed in range(3)]
    alone = find(model, tmp_path / "alone", name=name, seeds=(1,))
    assert alone.outcomes[0].ranked == found.outcomes[1].ranked
    best = min((outcome.ranked[0] for outcome in found.outcomes), key=lambda one: one[0])
    assert load_factors(tmp_path / "best.json") == best[1]
    provenance = found.extension.long.provenance
    assert provenance["evaluations"] == sum(len(outcome.ranked) for outcome in found.outcomes)
    assert provenance["token_evaluations"] == sum(outcome.tokens for outcome in found.outcomes)
    assert provenance["search_loss"] == best[0]


OURS = [Scaling([1.0 + i / 8] * 8) for i in range(8)]


def outcome(
    losses: Sequence[tuple[float, int]], records: Sequence[tuple[int, int]] = (), tokens: int = 100
) -> SearchOutcome:
    ranked = tuple((loss, OURS[i]) for loss, i in losses)
    return SearchOutcome("", ranked, tuple(Improvement(at, 9.0 - at, OURS[i]) for at, i in records), tokens, 0.0)


def test_the_finalists_are_distinct_though_all_seeds_begin_alike() -> None:
    outcomes = [outcome([(float(i), i) for i in chosen]) for chosen in ((0, 1, 2, 5), (0, 1, 3, 4))]
    assert module._finalists(outcomes) == OURS[:FINALISTS]
    assert module._finalists([outcome([(1.0, 0), (math.inf, 1)])]) == OURS[:1]


@pytest.mark.parametrize(
    ("records", "early"),
    [
        ([(10, 7), (40, 6), (90, 0)], [6]),
        ([(10, 7), (50, 6), (51, 5)], [6]),
        ([(51, 7), (90, 0)], []),
        ([(10, 1), (90, 0)], []),
        ([], []),
    ],
)
def test_the_best_of_each_searchs_first_half_is_a_finalist(records: list[tuple[int, int]], early: list[int]) -> None:
    ranked = [(float(i), i) for i in range(8)]
    expected = [*OURS[:FINALISTS], *(OURS[i] for i in early)]
    assert module._finalists([outcome(ranked, records)]) == expected
    other = outcome(ranked, [(2, 4)], tokens=4)
    assert module._finalists([outcome(ranked, records), other]) == [*expected, OURS[4]]


@pytest.mark.parametrize("name", METHODS)
def test_the_attention_factor_of_all_candidates(model: PreTrainedModel, tmp_path: Path, name: str) -> None:
    expected = attention_factor("su", ROPE, LENGTH)
    found = find(model, tmp_path, name=name, space={"attention_factor": expected}, make_objective=documents)
    assert {scaling.attention_factor for _, scaling in found.outcomes[0].ranked} == {expected}


@pytest.mark.parametrize("name", METHODS)
def test_the_attention_factor_is_searched_when_offered(model: PreTrainedModel, tmp_path: Path, name: str) -> None:
    found = find(model, tmp_path, name=name, space={"attention_factor": 1.1, "search_attention": True})
    tried = {scaling.attention_factor for _, scaling in found.outcomes[0].ranked}
    assert len(tried) > 1
    assert min(tried) >= 1 - 1e-12
    assert max(tried) <= 1 + 0.2 * math.log(LENGTH / 64) + 1e-12


@pytest.mark.parametrize("name", METHODS)
def test_start_tokens_are_searched_when_offered(model: PreTrainedModel, tmp_path: Path, name: str) -> None:
    found = find(model, tmp_path, name=name, space={"start_tokens": (0, 4, 16)}, budget=Budget(24 * ONCE))
    tried = {scaling.start_tokens for _, scaling in found.outcomes[0].ranked}
    assert tried <= {0, 4, 16}
    assert len(tried) > 1


@pytest.mark.parametrize("name", METHODS)
def test_candidates_keep_the_bounds(searched: Callable[[str], Searched], name: str) -> None:
    found, _ = searched(name)
    factors = np.array([scaling.factors for _, scaling in found.outcomes[0].ranked])
    assert factors.min() >= 1
    assert factors.max() <= METHODS[name].ceiling * LENGTH / 64 * (1 + 1e-9)


def test_several_lengths_in_one_search(model: PreTrainedModel, tmp_path: Path) -> None:
    both = {
        part: mix_texts([(0.5, perplexity_texts(tokens)), (0.5, perplexity_texts(tokens[:, :100]))])
        for part, tokens in TOKENS.items()
    }
    found = find(model, tmp_path, name="auto", items=both, batch_size=3, budget=None)
    best = found.outcomes[0].best
    long, short = (model_losses(model, best, TOKENS["search"][:, :length]).mean() for length in (LENGTH, 100))
    assert found.outcomes[0].ranked[0][0] == pytest.approx((long + short) / 2, abs=1e-5)
    # the starts, two ramps and the mean of the steps; three steps, on items of both lengths
    full = len(METHODS["auto"].schemes) + 2 + 1
    assert found.outcomes[0].tokens == full * 2 * (LENGTH + 100) + 3 * (LENGTH + 2 * 100)


def test_rows_change_nothing_but_the_last_digits(model: PreTrainedModel, tmp_path: Path) -> None:
    outcomes = []
    for rows in (1, 2, 4):
        run = find(model, tmp_path / str(rows), name="simple", batch_size=rows, budget=Budget(8 * ONCE))
        outcomes.append({scaling: loss for loss, scaling in run.outcomes[0].ranked})
    assert outcomes[0].keys() == outcomes[1].keys() == outcomes[2].keys()
    for scaling, loss in outcomes[0].items():
        assert [other[scaling] for other in outcomes[1:]] == pytest.approx([loss, loss], abs=1e-5)


class Interrupted:
    """An objective during whose n-th evaluation, counted over all objectives, Ctrl-C is pressed."""

    def __init__(self, inner: Objective, left: list[int]) -> None:
        self.inner, self.left, self.tokens = inner, left, inner.tokens

    def evaluate(self, batches: Sequence[Batch], *, gradient: bool) -> Iterator[tuple[int, list[CandidateLoss]]]:
        for answer in self.inner.evaluate(batches, gradient=gradient):
            self.left[0] -= 1
            if self.left[0] < 0:
                raise KeyboardInterrupt
            yield answer


def journals(run: Path) -> dict[str, list[dict]]:
    """All journals, without the times."""
    lines = {path.name: lines_of(path) for path in run.glob("*.jsonl")}
    return {name: [{k: v for k, v in line.items() if k != "seconds"} for line in lines[name]] for name in sorted(lines)}


@pytest.mark.parametrize("name", METHODS)
def test_interrupted_and_resumed_gives_the_identical_extension(
    model: PreTrainedModel, tmp_path: Path, name: str
) -> None:
    """In the first candidate, in the first search, in the second one and in the comparison on held-out documents."""
    space = {"start_tokens": (0, 8), "search_attention": True, "attention_factor": 1.1}
    fields = {"seeds": (0, 1), "name": name, "space": space, "budget": Budget(17 * ONCE)}
    whole = find(model, tmp_path / "whole", **fields)
    tried = [scaling for outcome in whole.outcomes for _, scaling in outcome.ranked]
    first, second = (
        sum("loss" in line for line in lines_of(tmp_path / "whole" / f"search-{seed}.jsonl")) for seed in (0, 1)
    )
    for after in (1, first - 2, first + 3, first + second + 1):
        cut, left = tmp_path / f"cut-{after}", [after]
        with pytest.raises(KeyboardInterrupt):
            find(
                model,
                cut,
                make_objective=lambda items, left=left: Interrupted(ModelObjective(model, items), left),
                **fields,
            )
        assert sum("loss" in line for path in cut.glob("*.jsonl") for line in lines_of(path)) == after
        assert (cut / "best.json").exists() == (after > 1)
        if after > 1:
            assert load_factors(cut / "best.json") in tried  # the best so far survives
        assert not (cut / "extension.json").exists()
        resumed = find(model, cut, existing="resume", **fields)
        assert [outcome.ranked for outcome in resumed.outcomes] == [outcome.ranked for outcome in whole.outcomes]
        for file in ("extension.json", "best.json"):
            assert (cut / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
        assert journals(cut) == journals(tmp_path / "whole")


def test_a_finished_run_is_resumed_without_an_evaluation(
    model: PreTrainedModel, copied: Callable[[str], Searched]
) -> None:
    before, folder = copied("auto")
    left = [0]
    again = find(
        model,
        folder,
        name="auto",
        existing="resume",
        settings=SETTINGS,
        make_objective=lambda items: Interrupted(ModelObjective(model, items), left),
    )
    assert (again.extension, again.held_out) == (before.extension, before.held_out)
    assert again.outcomes[0].ranked == before.outcomes[0].ranked
    assert again.outcomes[0].improvements == before.outcomes[0].improvements


def test_best_is_the_best_so_far(model: PreTrainedModel, tmp_path: Path) -> None:
    seen: list[bool] = []

    def watch(seed: int, progress: SearchProgress) -> None:
        seen.append(load_factors(tmp_path / "best.json") == progress.best)

    find(model, tmp_path, on_progress=watch)
    assert seen == [True] * 28  # one for each of the 28 evaluations of a document but the first, and one at the end


@pytest.mark.parametrize("name", METHODS)
def test_watch_is_told_the_seed_and_how_it_stands(model: PreTrainedModel, tmp_path: Path, name: str) -> None:
    told: dict[int, list[SearchProgress]] = {3: [], 4: []}
    found = find(
        model,
        tmp_path,
        name=name,
        seeds=(3, 4),
        make_objective=documents,
        on_progress=lambda seed, progress: told[seed].append(progress),
    )
    last = told[4].pop()
    assert last.is_over
    assert (last.loss, last.best) == min((outcome.ranked[0] for outcome in found.outcomes), key=lambda pair: pair[0])
    for outcome, standings in zip(found.outcomes, told.values(), strict=True):
        assert not any(one.is_over for one in standings)
        spent = [one.tokens for one in standings]
        assert spent == sorted(spent)
        assert spent[-1] == outcome.tokens
        assert (standings[-1].loss, standings[-1].best) == outcome.ranked[0]
        assert [one.loss for one in standings] == sorted((one.loss for one in standings), reverse=True)


@pytest.mark.parametrize("name", METHODS)
def test_a_larger_budget_continues_a_smaller_one(
    model: PreTrainedModel, tmp_path: Path, searched: Callable[[str], Searched], name: str
) -> None:
    find(model, tmp_path / "parts", name=name, budget=Budget(6 * ONCE), settings=SETTINGS)
    parts, (whole, folder) = (
        find(model, tmp_path / "parts", name=name, existing="resume", settings=SETTINGS),
        searched(name),
    )
    assert parts.extension == whole.extension
    assert parts.outcomes[0].ranked == whole.outcomes[0].ranked
    assert (tmp_path / "parts" / "extension.json").read_bytes() == (folder / "extension.json").read_bytes()


def test_a_second_run_in_the_same_folder_is_refused(model: PreTrainedModel, copied: Callable[[str], Searched]) -> None:
    _, folder = copied("paper")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(LongRopeError, match=r"search-0.jsonl exists.*--resume"):
        find(model, folder, settings=SETTINGS)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_overwrite_begins_anew(model: PreTrainedModel, tmp_path: Path) -> None:
    find(model, tmp_path / "old", name="simple", seeds=(0, 1))
    (tmp_path / "old" / "notes.txt").write_text("mine")
    over, fresh = (find(model, tmp_path / one, existing="overwrite") for one in ("old", "new"))
    assert over.extension == fresh.extension
    assert {path.name for path in (tmp_path / "old").iterdir()} == {
        "notes.txt",
        *(path.name for path in (tmp_path / "new").iterdir()),
    }


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"space": {"attention_factor": 1.2}}, "space was .*'attention_factor': 1.0.*now .*1.2"),
        ({"space": {"parametrization": "monotone"}}, "space was .*'free'.*now .*'monotone'"),
        ({"starts": [Scaling([2.0] * 8, scheme="mine")]}, r"starts was \['pi \w{8}', .*now \['mine \w{8}'\]"),
        ({"racing": True}, "racing was False, now True"),
        ({"settings": {**SETTINGS, "model": "b"}}, "model was 'llama', now 'b'"),
        *(({"name": name}, f"method was .*Paper.*now .*{name.title()}") for name in METHODS if name != "paper"),
    ],
)
def test_a_resume_with_other_settings_is_refused(
    model: PreTrainedModel, copied: Callable[[str], Searched], fields: dict[str, object], said: str
) -> None:
    _, folder = copied("paper")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(LongRopeError, match=f"other settings: .*{said}.*--overwrite"):
        find(model, folder, existing="resume", **{"settings": SETTINGS, **fields})
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_resume_with_other_documents_is_refused(model: PreTrainedModel, copied: Callable[[str], Searched]) -> None:
    _, folder = copied("paper")
    swapped = {"search": ITEMS["held_out"], "held_out": ITEMS["search"]}
    tails = {part: perplexity_texts(tokens, tail=50) for part, tokens in TOKENS.items()}
    for items in (swapped, tails):
        with pytest.raises(LongRopeError, match="data was"):
            find(model, folder, items=items, existing="resume", settings=SETTINGS)


def test_factors_of_another_rope_are_no_start(model: PreTrainedModel, tmp_path: Path) -> None:
    with pytest.raises(LongRopeError, match="a start of the search has 3 factors"):
        find(model, tmp_path / "run", starts=[Scaling([1.0, 2.0, 3.0])])


def test_a_search_goes_on_from_the_factors_of_another(
    model: PreTrainedModel, tmp_path: Path, searched: Callable[[str], Searched]
) -> None:
    """And gives nothing worse than them: they are compared with what it finds."""
    first = searched("auto")[0].extension.long
    found = find(model, tmp_path / "second", name="gradient", starts=[first])
    assert found.outcomes[0].improvements[0].scaling.factors == pytest.approx(first.factors, rel=1e-9)
    assert min(found.held_out.values()) <= loss_of(model, "held_out", first) + 1e-6


@pytest.mark.parametrize(
    ("field", "value"),
    [("length", 2.5), ("attention_factor", "su"), ("attention_factor", -1.0), ("ceiling", math.nan)],
)
def test_a_space_has_numbers(field: str, value: object) -> None:
    with pytest.raises(LongRopeError, match=f"^{field} = {value!r} must be a"):
        Space(ROPE, **{"length": LENGTH, field: value})


def test_a_space_of_numpys_numbers_is_written_as_one_of_pythons(tmp_path: Path) -> None:
    fields = {"attention_factor": np.float32(1.5), "ceiling": np.float32(2)}
    objectives = SearchObjectives.of(documents, ITEMS["search"], ITEMS["held_out"])
    starts = [scheme("yarn", ROPE, LENGTH)]
    for space, existing in (
        (Space(ROPE, np.int64(LENGTH), **fields), "refuse"),
        (Space(ROPE, LENGTH, attention_factor=1.5, ceiling=2.0), "resume"),
    ):
        run = SearchRun(existing=existing)
        find_factors(space, objectives, tmp_path, method=METHODS["cma"], starts=starts, run=run)


class Broken:
    """An objective that gives no number for the candidates of a scheme."""

    def __init__(self, inner: Objective, name: str) -> None:
        self.inner, self.name, self.tokens = inner, name, inner.tokens

    def evaluate(self, batches: Sequence[Batch], *, gradient: bool) -> Iterator[tuple[int, list[CandidateLoss]]]:
        for index, answers in self.inner.evaluate(batches, gradient=gradient):
            schemes = [one.scheme for one, _ in batches[index]]
            yield (
                index,
                [CandidateLoss(math.nan) if n == self.name else a for n, a in zip(schemes, answers, strict=True)],
            )


@pytest.mark.parametrize("broken", ["pi", "yarn", "searched"])
def test_a_scheme_whose_loss_is_not_finite_does_not_stop_the_run(
    model: PreTrainedModel, tmp_path: Path, broken: str
) -> None:
    def make_objective(items: Sequence[WeightedText]) -> Objective:
        held_out = len(items) == len(ITEMS["held_out"])
        return Broken(ModelObjective(model, items), broken) if held_out else ModelObjective(model, items)

    found = find(model, tmp_path, make_objective=make_objective)
    assert not math.isfinite(found.held_out[broken])
    assert list(found.held_out)[-1] == broken
    assert found.extension.long.scheme != broken
    provenance = json.loads((tmp_path / "extension.json").read_text(), parse_constant=pytest.fail)["long"]["provenance"]
    assert provenance["held_out_loss"].get(broken) is None


class WithoutNumber:
    """An objective that gives no number for the first start."""

    def __init__(self, inner: Objective, first: Scaling) -> None:
        self.inner, self.first, self.tokens = inner, first, inner.tokens

    def evaluate(self, batches: Sequence[Batch], *, gradient: bool) -> Iterator[tuple[int, list[CandidateLoss]]]:
        for index, answers in self.inner.evaluate(batches, gradient=gradient):
            broken = [one.factors == self.first.factors for one, _ in batches[index]]
            yield (
                index,
                [CandidateLoss(math.nan) if bad else answer for bad, answer in zip(broken, answers, strict=True)],
            )


@pytest.mark.parametrize("name", METHODS)
def test_a_start_without_a_number_is_the_worst_candidate(
    model: PreTrainedModel, tmp_path: Path, searched: Callable[[str], Searched], name: str
) -> None:
    first = scaling_of(lines_of(searched(name)[1] / "search-0.jsonl")[0])

    def broken(items: Sequence[WeightedText]) -> Objective:
        return WithoutNumber(documents(items), first)

    found = find(model, tmp_path / "whole", name=name, make_objective=broken)
    losses = [loss for loss, _ in found.outcomes[0].ranked]
    finite = [loss for loss in losses if math.isfinite(loss)]
    assert losses[: len(finite)] == sorted(finite)
    assert key(found.outcomes[0].ranked[-1][1]) == key(first)
    left = [6]
    with pytest.raises(KeyboardInterrupt):
        find(model, tmp_path / "cut", name=name, make_objective=lambda items: Interrupted(broken(items), left))
    find(model, tmp_path / "cut", name=name, make_objective=broken, existing="resume")
    assert journals(tmp_path / "cut") == journals(tmp_path / "whole")
    files = [(tmp_path / one / "extension.json").read_bytes() for one in ("cut", "whole")]
    assert files[0] == files[1]


class Favouring:
    """An objective whose losses are lowered by 9 for the candidates of a scheme."""

    def __init__(self, inner: Objective, name: str) -> None:
        self.inner, self.name, self.tokens = inner, name, inner.tokens

    def evaluate(self, batches: Sequence[Batch], *, gradient: bool) -> Iterator[tuple[int, list[CandidateLoss]]]:
        for index, answers in self.inner.evaluate(batches, gradient=gradient):
            less = [9.0 * (one.scheme == self.name) for one, _ in batches[index]]
            pairs = zip(answers, less, strict=True)
            yield index, [CandidateLoss(answer.loss - lower, answer.gradient) for answer, lower in pairs]


MINE = Scaling([2.5] * 8, scheme="mine", length=LENGTH)


@pytest.mark.parametrize(
    ("compared", "judged"), [(None, [*SCHEMES]), ([], []), ([MINE], ["mine"]), ([MINE, MINE], ["mine"])]
)
def test_only_what_is_compared_may_win(
    model: PreTrainedModel, tmp_path: Path, compared: list[Scaling] | None, judged: list[str]
) -> None:
    """However good a closed form is, it cannot without; what the search starts from and what it found always can."""
    start = Scaling([2.0] * 8, scheme="start", length=LENGTH)
    fields = {"starts": [start], "compared": compared}
    for best in ("heuristic", "mine", "start", "searched"):

        def make_objective(items: Sequence[WeightedText], best: str = best) -> Objective:
            return Favouring(documents(items), best)

        found = find(model, tmp_path / best, make_objective=make_objective, **fields)
        assert set(found.held_out) == {*judged, "start", "searched"}
        if best in found.held_out:
            assert found.extension.long.scheme == best
        kept = [scaling_of(line) for line in lines_of(tmp_path / best / "held-out.jsonl") if "loss" in line]
        assert (key(scheme("heuristic", ROPE, LENGTH)) in map(key, kept)) == (compared is None)


def test_a_search_after_a_stage(model: PreTrainedModel, tmp_path: Path) -> None:
    """All that it tries, and what it finds, are factors of the plain rope that a file can hold."""
    before = Scaling(np.linspace(1, 1.25, 8).tolist(), length=80)
    fields = {"starts": [before.times([2.0] * 8)], "compared": [], "space": {"before": before}}
    found = find(model, tmp_path, **fields)
    assert load_factors(tmp_path / "extension.json") == found.extension
    assert found.extension.rope == ROPE
    assert set(found.held_out) <= {"searched", "custom"}
    tried = np.array([scaling.factors for _, scaling in found.outcomes[0].ranked]) / before.factors
    assert tried.min() >= 1 - 1e-12
    assert 2 < tried.max() <= 2.5 * (1 + 1e-12)
    assert find(model, tmp_path, existing="resume", **fields).extension == found.extension
    for other in (None, replace(before, length=100), before.times([1.01] * 8)):
        with pytest.raises(LongRopeError, match=r"space was .*before"):
            find(model, tmp_path, existing="resume", **{**fields, "space": {"before": other}})


def test_the_hash_tells_items_apart() -> None:
    tokens = TOKENS["search"]
    variants = (tokens, tokens[::-1], tokens[:, ::-1], tokens[:1])
    hashes = [data_hash(perplexity_texts(one)) for one in variants]
    hashes.append(data_hash(perplexity_texts(tokens, tail=20)))
    assert len(set(hashes)) == 5
    assert (
        hashes[0]
        == data_hash(perplexity_texts(tokens.copy()))
        == data_hash(perplexity_texts(np.asfortranarray(tokens)))
    )
    changed = tokens.copy()
    changed[0, 0] += 1
    assert data_hash(perplexity_texts(changed)) != hashes[0]
