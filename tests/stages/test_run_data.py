"""The documents of a plan: no two of its parts share one, and too few are said before any work."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import running

from longrope.data.training_windows import IGNORED
from longrope.errors import LongRopeError
from longrope.stages.begin_run import begin_run
from longrope.stages.plan import Plan
from longrope.stages.plan_tables import Data, FinalEvaluation, Finetune, Recovery, Search, Stage
from longrope.stages.run_data import RunData
from longrope.stages.run_folder import StagedRun

SMALL = Search(documents=2, needles=0.0)
TRAIN = Finetune(steps=2, batch=4)
DOCUMENTS = 30
ALL = Stage(length=512, search=SMALL, finetune=Finetune(steps=20, batch=4))  # trains on all documents


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of 700 to 1,000 tokens; the second token of each names it, and it has no other of these tokens."""
    folder = tmp_path_factory.mktemp("texts") / "source"
    folder.mkdir()
    for i in range(DOCUMENTS):
        marked = np.random.default_rng(i).integers(3, 60, 700 + 10 * i)
        marked[::16] = 64 + i
        (folder / f"{i:02}.txt").write_text(" ".join(f"t{token}" for token in marked), encoding="utf-8")
    return folder


def plan(texts: Path, **fields: Any) -> Plan:
    data = {"source": str(texts), **fields.pop("data", {})}
    stages = (Stage(length=256, search=SMALL, finetune=TRAIN), Stage(length=512, search=SMALL, finetune=TRAIN))
    given = {"stages": stages, "recovery": Recovery(search=SMALL), "evaluation": FinalEvaluation(documents=2), **fields}
    return Plan(data=Data(**data), **given)


@pytest.fixture
def material(texts: Path, tmp_path: Path) -> Callable[..., RunData]:
    def make(**fields: Any) -> RunData:
        return RunData(
            plan(texts, **fields), running.ROPE, families.tokenizer(), tmp_path / "tokens", families.VOCABULARY
        )

    return make


def documents(tokens: Any) -> set[int]:
    """Which documents some token ids come from."""
    found = np.unique(np.concatenate([np.ravel(array) for array in tokens]))
    return {int(token) - 64 for token in found if token >= 64}


def parts(material: RunData) -> dict[str, set[int]]:
    """Which documents each part of a plan reads."""
    searches = [(stage.search, [stage.length]) for stage in material.plan.stages if stage.factors == "search"]
    if material.plan.recovery is not None:
        searches.append((material.plan.recovery.search, list(material.recovery_lengths)))
    drawn = [material.samples(search, lengths) for search, lengths in searches]
    windows = [material.windows(stage) for stage in material.plan.stages if stage.finetune is not None]
    return {
        "search": set().union(*(documents(item.tokens for item in items["search"]) for items in drawn)),
        "held_out": set().union(*(documents(item.tokens for item in items["held_out"]) for items in drawn)),
        "test": documents([material.test_documents().tokens]),
        "training": set().union(*(documents(one[i]["input_ids"] for i in range(len(one))) for one in windows)),
    }


def test_too_few_held_out_tokens_for_a_window(material: Callable[..., RunData]) -> None:
    stage = Stage(length=8192, factors="yarn", finetune=Finetune(steps=1, batch=1, average="auto"))
    with pytest.raises(
        LongRopeError, match=r"data\.source: the held-out documents have [\d,]+ tokens, fewer than the w"
    ):
        material(stages=(stage,)).held_out_windows(stage)


FOUR = {
    "as by default": {},
    "training on the source": {"data": {"train": "SOURCE"}},
    "other seed": {"data": {"seed": 7, "train": "SOURCE"}},
    "more searched": {"recovery": Recovery(search=Search(documents=4, needles=0.0))},
    "long searches": {
        "stages": (Stage(length=900, search=SMALL), Stage(length=950, finetune=TRAIN, factors="yarn")),
        "data": {"repeats": 3},
    },
    "windows": {
        "stages": (Stage(length=2048, search=Search(documents=3, window=128, needles=0.0), finetune=TRAIN),),
        "evaluation": FinalEvaluation(lengths=(64,), documents=3),
        "data": {"train": "SOURCE", "repeats": 3},
    },
}


@pytest.mark.parametrize("name", FOUR)
def test_no_two_parts_share_a_document(name: str, texts: Path, material: Callable[..., RunData]) -> None:
    fields = {**FOUR[name]}
    if fields.get("data", {}).get("train"):
        fields["data"] = {**fields["data"], "train": str(texts)}
    found = parts(material(**fields))
    for one in found:
        assert found[one], one
        for other in found:
            assert one == other or not found[one] & found[other], (one, other)


def test_texts_that_choose_the_winner_have_other_places(material: Callable[..., RunData]) -> None:
    samples = material().samples(Search(documents=2, window=128, needles=0.0), [2048])
    positions = {split: np.asarray(texts[0].positions) for split, texts in samples.items()}
    assert positions["search"].max() > 128
    assert not np.array_equal(positions["search"], positions["held_out"])


def test_all_that_is_left_of_the_source_is_trained_on(texts: Path, material: Callable[..., RunData]) -> None:
    data = material(data={"train": str(texts), "repeats": 100})
    windows = data.windows(ALL)
    found, searched = parts(data), documents(windows[i]["input_ids"] for i in range(len(windows)))
    kept = set().union(*({int(one.name[-6:-4]) for one in data._splits[part]} for part in ("held_out", "test")))
    assert searched == set(range(DOCUMENTS)) - kept - found["search"]


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_document_is_known_by_its_text_not_its_name(
    end: str, texts: Path, material: Callable[..., RunData], tmp_path: Path
) -> None:
    """Training texts under other names, in one file of many."""
    lines = [json.dumps({"text": path.read_text() + end}) for path in sorted(texts.iterdir())]
    (tmp_path / "all.jsonl").write_text("\n".join(lines))
    data = material(data={"train": str(tmp_path / "all.jsonl"), "repeats": 100})
    windows, found = data.windows(ALL), parts(data)
    trained = documents(windows[i]["input_ids"] for i in range(len(windows)))
    assert len(trained) > 5
    assert not trained & (found["search"] | found["held_out"] | found["test"])


def test_training_texts_of_their_own_are_read_as_well(
    texts: Path, material: Callable[..., RunData], tmp_path: Path
) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.txt").write_text("t127 " * 5000)
    found = parts(material(data={"train": str(tmp_path / "train")}))
    assert found["training"] == {127 - 64}
    assert found["search"] <= set(range(DOCUMENTS))


def test_the_same_every_time(material: Callable[..., RunData]) -> None:
    one, other = material(), material()
    stage = one.plan.stages[1]
    for i in range(3):
        assert np.array_equal(one.windows(stage)[i]["input_ids"], other.windows(stage)[i]["input_ids"])
    assert np.array_equal(one.test_documents().tokens, other.test_documents().tokens)


def test_documents_end_with_the_end_of_text_token(material: Callable[..., RunData]) -> None:
    data = material()
    data.tokenizer.add_special_tokens({"eos_token": "t127"})  # in none of the texts
    end = 127
    windows = data.windows(data.plan.stages[1])
    ends = 0
    for i in range(len(windows)):
        tokens, labels = windows[i]["input_ids"][0], windows[i]["labels"][0]
        ends += int((tokens == end).sum())
        follows = np.flatnonzero(tokens[:-1] == end) + 1
        assert (labels[follows] == IGNORED).all()
        assert (labels[tokens == end] == end).all()  # the end itself is learnt
    assert ends > 0


def test_lengths_as_by_default(material: Callable[..., RunData]) -> None:
    data = material()
    assert list(data.recovery_lengths) == [64, 128]
    assert list(data.evaluation_lengths) == [64, 256, 512]
    assert data.test_documents().tokens.shape == (2, 512)
    assert data.plan.recovery_lengths(300) == (300,)  # the plan does not reach 600
    given = material(
        recovery=Recovery(lengths=(100,), search=SMALL), evaluation=FinalEvaluation(lengths=(300, 64), documents=3)
    )
    assert list(given.recovery_lengths) == [100]
    assert list(given.evaluation_lengths) == [64, 300]
    assert given.test_documents().tokens.shape == (3, 300)


def test_as_much_as_the_stage_asks_for(material: Callable[..., RunData]) -> None:
    for how, count, size in (
        (Finetune(steps=2, batch=3), 6, 256),
        (Finetune(tokens=2048, batch=2), 8, 256),
        (Finetune(steps=1, batch=2, window=100), 2, 100),
    ):
        windows = material().windows(Stage(length=256, finetune=how))
        assert len(windows) == count
        assert windows[count - 1]["input_ids"].shape == (1, size)


LITTLE = {
    "training": (
        {"stages": (Stage(length=256, search=SMALL, finetune=Finetune(tokens=100_000, batch=4)),)},
        r"data: 392 sequences of 256 tokens are to be trained on, but the training documents give \d+ in 1 pass\(es\). "
        r"Give more documents \(data.train\)",
    ),
    "training of the second stage": (
        {
            "stages": (
                Stage(length=256, search=SMALL, finetune=TRAIN),
                Stage(length=512, search=SMALL, finetune=Finetune(tokens=100_000, batch=4)),
            )
        },
        "data: 196 sequences of 512 tokens are to be trained on",
    ),
    "search": (
        {"stages": (Stage(length=256, search=Search(documents=99)),)},
        r"data: 99 texts of 256 tokens are needed. Of 30 documents in all, split into .*, 12 are in this split, the",
    ),
    "held out": (
        {"stages": (Stage(length=256, search=Search(documents=20)),)},
        r"data: 20 texts of 256 tokens are needed. Of 30 documents in all, .*, 6 are in this split, the longest",
    ),
    "length of the second stage": (
        {"stages": (Stage(length=256, search=SMALL), Stage(length=4096, search=SMALL))},
        r"data: 2 texts of 4096 tokens are needed. .* 12 are in this split, the longest of which has \d+ tokens; the",
    ),
    "recovery": (
        {"recovery": Recovery(search=Search(documents=99)), "stages": (Stage(length=256, search=SMALL),)},
        "data: 99 texts of 128 tokens are needed",
    ),
    "test": (
        {"evaluation": FinalEvaluation(documents=99), "stages": (Stage(length=256, search=SMALL),)},
        "data: 99 texts of 256 tokens are needed",
    ),
    "test at its own length": (
        {"evaluation": FinalEvaluation(lengths=(64, 2048), documents=1), "stages": (Stage(length=256, search=SMALL),)},
        "data: 1 text of 2048 tokens is needed",
    ),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return running.save(tmp_path_factory.mktemp("models") / "llama")


@pytest.mark.filterwarnings("ignore::longrope.errors.CorpusWarning")
@pytest.mark.parametrize("name", LITTLE)
def test_too_little_is_said_before_any_work(name: str, texts: Path, model: Path, tmp_path: Path) -> None:
    fields, said = LITTLE[name]
    folder = tmp_path / "run"
    with pytest.raises(LongRopeError, match=said):
        begin_run(StagedRun(folder, str(model), plan(texts, **fields)), resume=False)
    assert not list(folder.glob("*.json"))
    assert not list(folder.glob("stage-*"))
    begin_run(StagedRun(folder, str(model), plan(texts)), resume=False)  # and the folder can be used
    assert (folder / "run.json").exists()


@pytest.mark.parametrize("part", ["search", "held_out", "test"])
def test_training_documents_that_are_all_kept_back(
    part: str, texts: Path, model: Path, material: Callable[..., RunData], tmp_path: Path
) -> None:
    number = min(parts(material())[part])
    given = plan(texts, data={"train": str(texts / f"{number:02}.txt"), "repeats": 100})
    with pytest.raises(LongRopeError, match=re.escape("the training documents give 0 in 100 pass(es)")):
        begin_run(StagedRun(tmp_path / "run", str(model), given), resume=False)
