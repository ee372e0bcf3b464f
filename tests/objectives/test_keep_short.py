from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import families
import numpy as np
import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import longrope as lr
from longrope.data.documents import Document
from longrope.data.weighted_text import WeightedText, perplexity_texts
from longrope.errors import LongRopeError
from longrope.objectives.keep_short import PENALTY, REWARD, KeepShort, kept_short, short_texts
from longrope.objectives.model_loss import ModelObjective
from longrope.rope import Rope
from longrope.scaling import Scaling
from longrope.search.protocol import CandidateLoss
from longrope.search.run import SearchObjectives

LONG, SHORT, SHARE = 96, 32, 0.03
CANDIDATE = Scaling(np.linspace(1, 3, 8).tolist(), attention_factor=1.2)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return families.build("llama", num_hidden_layers=1)


@pytest.fixture(scope="module")
def tiny_tokenizer() -> PreTrainedTokenizerBase:
    return lr.load("tiny")[1]


@pytest.fixture(scope="module")
def samples() -> list[WeightedText]:
    """Two long samples and three short ones."""
    return perplexity_texts(families.tokens(2, LONG).numpy()) + perplexity_texts(families.tokens(3, SHORT).numpy())


def answers(objective: ModelObjective | KeepShort, scaling: Scaling, *, gradient: bool = False) -> list[CandidateLoss]:
    batches = [[(scaling, index)] for index in range(5)]
    return [answer for _, (answer,) in objective.evaluate(batches, gradient=gradient)]


def losses(objective: ModelObjective | KeepShort, scaling: Scaling) -> list[float]:
    return [answer.loss for answer in answers(objective, scaling)]


def test_the_mean_is_the_long_loss_and_a_penalty_for_each_short_text(
    model: PreTrainedModel, samples: list[WeightedText]
) -> None:
    plain = ModelObjective(model, samples)
    kept = KeepShort.of(plain, Rope.of(model), 3, SHARE)
    before, after = losses(plain, Scaling.identity(Rope.of(model))), losses(plain, CANDIDATE)
    above = np.array(after[2:]) - np.array(before[2:]) - math.log1p(SHARE)
    assert (above > 0).any()
    assert (above < 0).any()
    expected = np.mean(after[:2]) + np.mean(np.where(above > 0, PENALTY, REWARD) * above)
    assert np.mean(losses(kept, CANDIDATE)) == pytest.approx(expected, rel=1e-6)


def test_losses_come_back_out_of_the_penalties(model: PreTrainedModel, samples: list[WeightedText]) -> None:
    plain = ModelObjective(model, samples)
    kept = KeepShort.of(plain, Rope.of(model), 3, SHARE)
    before, after = losses(plain, Scaling.identity(Rope.of(model))), losses(plain, CANDIDATE)
    long, change = kept.losses(dict(enumerate(losses(kept, CANDIDATE))))
    assert long == pytest.approx(np.mean(after[:2]), rel=1e-6)
    assert change == pytest.approx(np.mean(after[2:]) - np.mean(before[2:]), abs=1e-6)


def test_the_gradient_is_the_slope_of_the_mean(model: PreTrainedModel, samples: list[WeightedText]) -> None:
    kept = KeepShort.of(ModelObjective(model, samples), Rope.of(model), 3, SHARE)
    gradient = np.mean([answer.gradient for answer in answers(kept, CANDIDATE, gradient=True)], axis=0)
    step = 1e-3
    higher, lower = (
        np.mean(losses(kept, Scaling(CANDIDATE.factors, attention_factor=1.2 * math.exp(sign * step))))
        for sign in (1, -1)
    )
    assert gradient[-1] == pytest.approx((higher - lower) / (2 * step), rel=0.05)


def test_the_change_is_that_of_the_winner_and_not_of_equal_factors_with_another_attention(tmp_path: Path) -> None:
    kept = KeepShort(lr.FunctionObjective(lambda _: 0.0, tokens=(9, 3)), [0.0], 0.1)
    winner, other = Scaling([1.0, 2.0], attention_factor=1.2), Scaling([1.0, 2.0], attention_factor=1.0)
    lines = ["{}"]
    for scaling, above in ((other, 0.5), (winner, 0.2)):
        for item, loss in enumerate((4.0, 2 * PENALTY * above)):
            line = {"item": item, "loss": loss, "factors": list(scaling.factors), "start_tokens": 0}
            lines.append(json.dumps(line | {"attention_factor": scaling.attention_factor}))
    for name in ("held-out.jsonl", "search-0.jsonl"):
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    record = kept_short(tmp_path, SearchObjectives(kept, kept, {}), winner)
    assert record["change"] == pytest.approx(1.1 * math.exp(0.2) - 1)
    assert [point["long"] for point in record["trade_off"]] == [2.0]


@pytest.mark.parametrize(("length", "count", "texts"), [(2048, 4, 16), (512, 4, 8), (2048, 16, 16), (300, 2, 2)])
def test_short_texts_come_from_as_many_documents(
    tiny_tokenizer: PreTrainedTokenizerBase, length: int, count: int, texts: int
) -> None:
    documents = [Document(str(i), f"def f{i}(x):\n    return x + {i}\n" * 400) for i in range(count)]
    rope = Rope(dim=64, base=10000.0, original_length=256)
    drawn = short_texts(documents, tiny_tokenizer, rope, length, count)
    assert len(drawn) == texts
    assert all(len(text.tokens) == 256 and text.skip == 0 for text in drawn)
    assert len({text.tokens.tobytes() for text in drawn}) > 1


def test_a_length_within_l0_has_no_short_texts(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(LongRopeError, match=r"keep_short: length = 256 is not above L0 = 256"):
        short_texts([], tiny_tokenizer, Rope(dim=64, base=10000.0, original_length=256), 256, 4)


@pytest.mark.parametrize("share", [-0.01, math.nan, math.inf])
def test_a_limit_that_is_not_a_share_is_refused(share: float) -> None:
    with pytest.raises(LongRopeError, match=r"keep_short = .*: not a share of 0 or more\. Give 0\.01 for 1%"):
        lr.SearchOptions(keep_short=share).method("auto", 2048)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search of `tiny` whose factors may raise perplexity at L0 by half."""
    folder = tmp_path_factory.mktemp("kept") / "run"
    model, tokenizer = lr.load("tiny", dtype="float32")
    options = lr.SearchOptions(keep_short=0.5, search_documents=1, held_out_documents=1, population=4)
    lr.search(model, tokenizer, length=512, data="stdlib:unseen", output=folder, options=options)
    return folder


def front(folder: Path) -> Sequence[dict[str, float]]:
    return json.loads((folder / "run.json").read_text())["keep_short"]["trade_off"]


def test_run_json_says_what_short_texts_lose(searched: Path) -> None:
    record = json.loads((searched / "run.json").read_text())["keep_short"]
    assert record["limit"] == 0.5
    assert -0.1 < record["change"] <= 0.5
    points = front(searched)
    assert [point["short"] for point in points] == sorted(point["short"] for point in points)
    assert [point["long"] for point in points] == sorted((point["long"] for point in points), reverse=True)
    assert len({point["long"] for point in points}) == len(points) > 1
