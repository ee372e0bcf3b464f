from __future__ import annotations

import json
import math
from pathlib import Path

import families
import numpy as np
import pytest
from transformers import PreTrainedModel

from longrope.errors import LongRopeError
from longrope.evaluation.objective import perplexity_objective
from longrope.extension import factors as module
from longrope.extension.factors import FINALISTS, Budget, Found, data_hash, find_factors
from longrope.files import load_factors
from longrope.rope import Extension, Rope, Scaling
from longrope.schemes import attention_factor, scheme
from longrope.search.evolution import Paper, Simple
from longrope.search.run import Outcome, Progress

LENGTH, SCHEMES = 160, ("pi", "ntk", "yarn", "heuristic")
METHODS = {"paper": Paper(generations=3).sized(8), "simple": Simple(generations=2).sized(8)}


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return families.build("llama", num_hidden_layers=1)


TOKENS = {"search": families.tokens(5, LENGTH)[:2].numpy(), "held_out": families.tokens(5, LENGTH)[2:].numpy()}


def find(model: PreTrainedModel, run: Path, *, name: str = "paper", **fields: object) -> Found:
    fields = {"budget": Budget(14), "attention": "none", **fields}
    return find_factors(model, TOKENS["search"], TOKENS["held_out"], run, method=METHODS[name], **fields)


@pytest.mark.parametrize("name", METHODS)
def test_the_winner_has_the_lowest_held_out_loss(model: PreTrainedModel, tmp_path: Path, name: str) -> None:
    found, rope = find(model, tmp_path, name=name), Rope.of(model)
    held_out = perplexity_objective(model, TOKENS["held_out"])
    finalists = [scaling for _, scaling in found.outcomes[0].ranked[:FINALISTS]]
    losses = {scaling: held_out(scaling) for scaling in [*finalists, *(scheme(one, rope, LENGTH) for one in SCHEMES)]}
    winner = min(losses, key=losses.__getitem__)
    assert found.extension.long == winner
    assert list(found.held_out.values()) == sorted(found.held_out.values())
    assert set(found.held_out) == {"searched", *SCHEMES}
    for one in SCHEMES:
        assert found.held_out[one] == pytest.approx(losses[scheme(one, rope, LENGTH)])
    assert found.held_out["searched"] == pytest.approx(min(losses[scaling] for scaling in finalists))


@pytest.mark.parametrize("name", METHODS)
def test_what_the_folder_holds(model: PreTrainedModel, tmp_path: Path, name: str) -> None:
    found = find(model, tmp_path / "new" / "run", name=name)
    folder = tmp_path / "new" / "run"
    names = {"search-0.jsonl", "held-out.jsonl", "best.json", "extension.json"}
    assert {path.name for path in folder.iterdir()} == names
    extension = load_factors(folder / "extension.json")
    assert extension == found.extension
    assert isinstance(extension, Extension)
    assert extension.rope == Rope.of(model)
    assert extension.length == LENGTH
    assert extension.short == Scaling.identity(extension.rope)
    assert load_factors(folder / "best.json") == found.outcomes[0].best


def test_provenance_can_be_recomputed(model: PreTrainedModel, tmp_path: Path) -> None:
    found = find(model, tmp_path, settings={"model": "llama", "dtype": "torch.float32"})
    provenance = json.loads((tmp_path / "extension.json").read_text())["long"]["provenance"]
    assert provenance == found.extension.long.provenance
    assert (provenance["model"], provenance["dtype"], provenance["seeds"]) == ("llama", "torch.float32", [0])
    assert provenance["evaluations"] == 14
    searched, held_out = (perplexity_objective(model, TOKENS[part]) for part in ("search", "held_out"))
    best = found.outcomes[0].best
    assert provenance["search_perplexity"] == pytest.approx(math.exp(searched(best)), rel=1e-6)
    for name, perplexity in provenance["held_out_perplexity"].items():
        assert perplexity == pytest.approx(math.exp(found.held_out[name]))
    assert provenance["held_out_perplexity"]["yarn"] == pytest.approx(
        math.exp(held_out(scheme("yarn", Rope.of(model), LENGTH))), rel=1e-6
    )


def test_the_model_is_what_it_was(model: PreTrainedModel, tmp_path: Path) -> None:
    before = families.logits(model, families.tokens(1, LENGTH))
    find(model, tmp_path)
    assert (families.logits(model, families.tokens(1, LENGTH)) == before).all()


def test_several_seeds(model: PreTrainedModel, tmp_path: Path) -> None:
    found = find(model, tmp_path, seeds=(0, 1, 2))
    assert len(found.outcomes) == 3
    assert len({outcome.ranked for outcome in found.outcomes}) == 3
    assert sorted(path.name for path in tmp_path.glob("search-*")) == [f"search-{seed}.jsonl" for seed in range(3)]
    alone = find(model, tmp_path / "alone", seeds=(1,))
    assert alone.outcomes[0].ranked == found.outcomes[1].ranked
    best = min((outcome.ranked[0] for outcome in found.outcomes), key=lambda one: one[0])
    assert load_factors(tmp_path / "best.json") == best[1]
    assert found.extension.long.provenance["evaluations"] == sum(len(outcome.ranked) for outcome in found.outcomes)


def test_the_finalists_are_distinct_though_all_seeds_begin_alike() -> None:
    ours = [Scaling([1.0 + i / 8] * 8) for i in range(6)]
    outcomes = [Outcome("", tuple((float(i), ours[i]) for i in chosen), 0.0) for chosen in ((0, 1, 2, 5), (0, 1, 3, 4))]
    assert module._finalists(outcomes) == ours[:FINALISTS]
    broken = Outcome("", ((1.0, ours[0]), (math.inf, ours[1])), 0.0)
    assert module._finalists([broken]) == ours[:1]


@pytest.mark.parametrize("policy", ["none", "su", "yarn", 1.05])
def test_the_attention_factor_of_all_candidates(model: PreTrainedModel, tmp_path: Path, policy: str | float) -> None:
    found = find(model, tmp_path, attention=policy, budget=Budget(4))
    expected = attention_factor(policy, Rope.of(model), LENGTH)
    assert {scaling.attention_factor for _, scaling in found.outcomes[0].ranked} == {expected}


def test_start_tokens_are_searched_when_offered(model: PreTrainedModel, tmp_path: Path) -> None:
    found = find(model, tmp_path, start_tokens=(0, 4, 16), budget=Budget(20))
    assert {scaling.start_tokens for _, scaling in found.outcomes[0].ranked} == {0, 4, 16}


class Interruption:
    """Stops a search after so many candidates, as Ctrl-C does."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, seed: int, yarn: float, progress: Progress) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", [1, 7, 14, 15, 20])
@pytest.mark.parametrize("name", METHODS)
def test_interrupted_and_resumed_gives_the_identical_extension(
    model: PreTrainedModel, tmp_path: Path, after: int, name: str
) -> None:
    fields = {"seeds": (0, 1), "name": name, "start_tokens": (0, 8)}
    whole = find(model, tmp_path / "whole", **fields)
    with pytest.raises(KeyboardInterrupt):
        find(model, tmp_path / "cut", watch=Interruption(after), **fields)
    ranked = [one for outcome in whole.outcomes for one in outcome.ranked]
    tried = [scaling for _, scaling in ranked]
    assert load_factors(tmp_path / "cut" / "best.json") in tried  # the best so far survives
    assert not (tmp_path / "cut" / "extension.json").exists()
    resumed = find(model, tmp_path / "cut", existing="resume", **fields)
    assert [outcome.ranked for outcome in resumed.outcomes] == [outcome.ranked for outcome in whole.outcomes]
    for file in ("extension.json", "best.json"):
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_best_is_the_best_so_far(model: PreTrainedModel, tmp_path: Path) -> None:
    seen: list[bool] = []

    def watch(seed: int, yarn: float, progress: Progress) -> None:
        seen.append(load_factors(tmp_path / "best.json") == progress.best)

    find(model, tmp_path, watch=watch)
    assert seen == [True] * 14


def test_watch_is_told_the_seed_and_the_loss_of_yarn(model: PreTrainedModel, tmp_path: Path) -> None:
    told: list[tuple[int, float]] = []
    find(model, tmp_path, seeds=(3, 4), watch=lambda seed, yarn, _: told.append((seed, yarn)))
    yarn = perplexity_objective(model, TOKENS["search"])(scheme("yarn", Rope.of(model), LENGTH))
    assert told == [(seed, pytest.approx(yarn)) for seed in (3, 4) for _ in range(14)]


def test_a_larger_budget_continues_a_smaller_one(model: PreTrainedModel, tmp_path: Path) -> None:
    find(model, tmp_path / "parts", budget=Budget(6))
    parts, whole = (find(model, tmp_path / one, budget=Budget(14), existing="resume") for one in ("parts", "whole"))
    assert parts.extension == whole.extension
    assert parts.outcomes[0].ranked == whole.outcomes[0].ranked
    files = [(tmp_path / one / "extension.json").read_bytes() for one in ("parts", "whole")]
    assert files[0] == files[1]


def test_a_second_run_in_the_same_folder_is_refused(model: PreTrainedModel, tmp_path: Path) -> None:
    find(model, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(LongRopeError, match=r"search-0.jsonl exists.*--resume"):
        find(model, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(("fields", "said"), [({"attention": "su"}, "space"), ({"name": "simple"}, "space|method")])
def test_a_resume_with_other_settings_is_refused(
    model: PreTrainedModel, tmp_path: Path, fields: dict[str, object], said: str
) -> None:
    find(model, tmp_path, settings={"model": "a"})
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(LongRopeError, match=f"other settings: ({said}) was"):
        find(model, tmp_path, settings={"model": "a"}, existing="resume", **fields)
    with pytest.raises(LongRopeError, match="model was 'a', now 'b'"):
        find(model, tmp_path, settings={"model": "b"}, existing="resume")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_resume_with_other_documents_is_refused(model: PreTrainedModel, tmp_path: Path) -> None:
    find(model, tmp_path)
    with pytest.raises(LongRopeError, match="data was"):
        find_factors(
            model,
            TOKENS["held_out"],
            TOKENS["search"],
            tmp_path,
            method=METHODS["paper"],
            attention="none",
            existing="resume",
        )


@pytest.mark.parametrize("wrong", [{"starts": ("pi", "bogus")}, {"attention": "bogus"}])
def test_bad_arguments_leave_nothing_behind(model: PreTrainedModel, tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(LongRopeError, match=r"scheme|attention"):
        find(model, tmp_path / "run", **wrong)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("broken", ["pi", "yarn"])
def test_a_scheme_whose_loss_is_not_finite_does_not_stop_the_run(
    model: PreTrainedModel, tmp_path: Path, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def objective_of(*args: object, **fields: object):
        plain = perplexity_objective(*args, **fields)
        return lambda scaling: math.nan if scaling.scheme == broken else plain(scaling)

    monkeypatch.setattr(module, "perplexity_objective", objective_of)
    found = find(model, tmp_path)
    assert found.held_out[broken] == math.inf
    assert list(found.held_out)[-1] == broken
    provenance = json.loads((tmp_path / "extension.json").read_text(), parse_constant=pytest.fail)["long"]["provenance"]
    assert provenance["held_out_perplexity"].get(broken) is None


def test_the_hash_tells_documents_apart() -> None:
    tokens = TOKENS["search"]
    assert data_hash(tokens) == data_hash(tokens.copy()) == data_hash(np.asfortranarray(tokens))
    assert len({data_hash(tokens), data_hash(tokens[::-1]), data_hash(tokens[:, ::-1]), data_hash(tokens[:1])}) == 4
    changed = tokens.copy()
    changed[0, 0] += 1
    assert data_hash(changed) != data_hash(tokens)
