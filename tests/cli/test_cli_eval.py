"""``longrope eval`` beyond perplexity: what it keeps, what it goes on with, tasks."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from longrope.cost import memory_check
from longrope.data.documents import load_documents
from longrope.data.split import draw_tokens, split_documents
from longrope.evaluation import losses
from longrope.evaluation.key_tokens import key_tokens
from longrope.evaluation.losses import model_losses
from longrope.evaluation.sliding_window import sliding_losses
from longrope.formats.load_factors import load_factors
from longrope.models.patch import patch
from longrope.rope import Rope
from longrope.schemes import scheme
from longrope.tasks.registry import make_prompts
from longrope.tasks.scoring import score_prompts

ROPE = Rope(dim=16, base=10000.0, original_length=64)
LENGTHS = ("--lengths", "64,160", "--documents", 3, "--schemes", "yarn")
MORE = ("--stride", 50, "--key-tokens", "yarn", "--retrieval", "recall", "--retrieval-lengths", 150, "--trials", 4)


def plain(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != "provenance"}


@pytest.fixture(scope="module")
def whole(cli, model: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("eval") / "whole"
    result = cli("eval", model, *LENGTHS, *MORE, "--data", texts, "-o", folder, "--json")
    assert result.code == 0, result.err
    assert json.loads((folder / "results.json").read_text()) == result.json
    return folder, result.json


@pytest.fixture(scope="module")
def opened(model: Path, texts: Path) -> tuple[Any, Any, np.ndarray]:
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    return (
        loaded,
        tokenizer,
        draw_tokens(split_documents(load_documents(str(texts)))["test"], tokenizer, length=160, count=3).tokens,
    )


def test_every_measure_is_what_the_library_gives(whole, opened) -> None:
    record, (loaded, tokenizer, tokens) = whole[1], opened
    chosen = [key_tokens(loaded, scheme("yarn", ROPE, 160), row, window=64) for row in tokens]
    probes = make_prompts("recall", tokenizer, length=150, trials=4, texts=tokens, depths=[0, 0.25, 0.5, 0.75, 1])
    for name, factors in {"original": None, "yarn": scheme("yarn", ROPE, 160)}.items():
        losses = model_losses(loaded, factors, tokens)
        for cell in record["positions"][name]:
            part = losses[:, cell["start"] - 1 : cell["end"] - 1]
            assert cell["loss"] == pytest.approx(part.mean(), rel=1e-4)
        assert [cell["start"] for cell in record["positions"][name][1:]] == [
            cell["end"] for cell in record["positions"][name][:-1]
        ]
        assert record["positions"][name][-1]["end"] == 160
        (row,) = (cell for cell in record["sliding"][name] if cell["length"] == 64)
        windows = [sliding_losses(loaded, factors, one, length=64, stride=50).mean() for one in tokens]
        assert row["perplexity"] == pytest.approx(math.exp(np.mean(windows)), rel=1e-4)
        (row,) = record["key_tokens"][name]
        found = np.concatenate([losses[i][keys] for i, keys in enumerate(chosen)])
        assert row["share"] == pytest.approx(len(found) / (3 * 159))
        if len(found):
            assert row["perplexity"] == pytest.approx(math.exp(found.mean()), rel=1e-4)
        with patch(loaded, factors):
            outcomes = score_prompts(loaded, tokenizer, probes)
        cells = record["retrieval"][name]
        assert sum(cell["score"] for cell in cells) == pytest.approx(sum(one.score for one in outcomes))
        assert [cell["choice"] for cell in cells] == [float(bool(one.choice)) for one in outcomes]
    for cell in record["differences"]["yarn"]:
        own, other = (
            next(one for one in record["perplexity"][name] if one["length"] == cell["length"])
            for name in ("yarn", "original")
        )
        assert cell["percent"] == pytest.approx(100 * (own["perplexity"] / other["perplexity"] - 1), rel=1e-4)
        assert cell["wins"] == sum(a < b for a, b in zip(own["losses"], other["losses"], strict=True))


def test_cut_anywhere_and_resumed_equals_uninterrupted(cli, model: Path, texts: Path, whole, tmp_path: Path) -> None:
    journal = (whole[0] / "cells.jsonl").read_bytes()
    for size in np.linspace(0, len(journal), 6).astype(int):
        folder = tmp_path / str(size)
        folder.mkdir()
        (folder / "cells.jsonl").write_bytes(journal[:size])
        result = cli("eval", model, *LENGTHS, *MORE, "--data", texts, "-o", folder, "--json", "--resume")
        assert result.code == 0, result.err
        assert plain(result.json) == plain(whole[1])
        assert (folder / "cells.jsonl").read_bytes() == journal


def test_questions_that_share_a_text(cli, refused, model: Path, texts: Path, tmp_path: Path) -> None:
    """The mean of the scores is that of the prompts; --resume with another number keeps both."""
    command = ("eval", model, *LENGTHS, "--data", texts, "--retrieval", "recall", "--retrieval-lengths", 150)
    command += ("--trials", 5, "--json", "-o", tmp_path / "run")
    result = cli(*command, "--questions", 2)
    assert result.code == 0, result.err
    assert {score["questions"] for score in result.json["retrieval"]["yarn"]} == {2}
    assert sum(score["trials"] for score in result.json["retrieval"]["yarn"]) == 5
    journal = (tmp_path / "run" / "cells.jsonl").read_text()
    assert cli(*command, "--questions", 2, "--resume").json["retrieval"] == result.json["retrieval"]
    assert (tmp_path / "run" / "cells.jsonl").read_text() == journal
    single = cli(*command, "--resume").json["retrieval"]
    assert "questions" not in single["yarn"][0]
    refused(
        "questions = 3: task passkey has one question a document. Set questions = 1",
        *("eval", model, *LENGTHS, "--data", texts, "--retrieval", "passkey", "--questions", 3),
    )


def test_rows_that_are_added_do_not_cost_the_others_again(
    cli, model: Path, texts: Path, exported: Path, whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, passes = Path(shutil.copytree(whole[0], tmp_path / "run")), []
    counted = losses.losses_by_length
    monkeypatch.setattr(losses, "losses_by_length", lambda *a, **k: (passes.append(a[1]), counted(*a, **k))[1])
    command = ("eval", model, *LENGTHS[:-1], "yarn,pi", *MORE, "--data", texts, "-o", folder, "--json", "--resume")
    result = cli(*command, "--checkpoint", exported)
    assert result.code == 0, result.err
    assert [one and one.scheme for one in passes] == ["pi"] * 3 + [None] * 3
    assert list(result.json["rows"]) == ["original", "yarn", "pi", str(exported)]
    assert result.json["perplexity"]["yarn"] == whole[1]["perplexity"]["yarn"]


def test_what_cannot_be_compared(refused, model: Path, texts: Path, tmp_path: Path, monkeypatch) -> None:
    """Refused before a folder is begun, so that the next try needs no other options."""
    good = ("eval", model, *LENGTHS, "--data", texts, "-o", tmp_path / "run")
    refused("tiny has another tokenizer: perplexity of other tokens cannot be compared", *good, "--checkpoint", "tiny")
    monkeypatch.setattr(memory_check, "free_memory", lambda _: 2**19)
    refused("length = 160 takes about .* GiB free; about", *good)


def test_corpora_of_the_same_name_are_told_apart(cli, model: Path, texts: Path, tmp_path: Path) -> None:
    folders = [Path(shutil.copytree(texts, tmp_path / name / "same")) for name in ("a", "b")]
    for path in folders[1].iterdir():
        path.write_text(path.read_text()[::-1])
    record = cli("eval", model, *LENGTHS, "--data", folders[0], "--data", folders[1], "--json").json
    assert list(record["corpora"]) == [str(folder) for folder in folders]
    one, other = (corpus["hash"] for corpus in record["corpora"].values())
    assert one != other
    assert len(record["perplexity"]["yarn"]) == 4


def test_several_corpora(cli, model: Path, texts: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(texts, tmp_path / "other"))
    for path in other.iterdir():
        path.write_text(path.read_text()[::-1])
    both = cli("eval", model, *LENGTHS, "--data", texts, "--data", other, "--json").json
    assert list(both["corpora"]) == [texts.name, "other"]
    for i, data in enumerate((texts, other)):
        alone = cli("eval", model, *LENGTHS, "--data", data, "--json").json
        name = list(both["corpora"])[i]
        for row, cells in alone["perplexity"].items():
            assert [cell for cell in both["perplexity"][row] if cell["corpus"] == name] == cells


def test_a_search_that_read_the_test_documents_is_named(cli, model: Path, texts: Path, tmp_path: Path) -> None:
    found = tmp_path / "found"
    documents = ("--search-documents", 2, "--held-out-documents", 1, "--data-seed", 1)
    searched = ("--method", "paper", "--budget", "1k", *documents)
    assert cli("search", model, "--length", 160, "--data", texts, *searched, "-o", found).code == 0
    read = json.loads((found / "run.json").read_text())["documents"]
    options = (*LENGTHS, "--data", texts, "--factors", found)
    other_seed, same_seed = cli("eval", model, *options), cli("eval", model, *options, "--data-seed", 1)
    tested = {doc.name for doc in split_documents(load_documents(str(texts)))["test"][:3]}
    both = tested & {name for names in read.values() for name in names}
    assert both, "the seeds share documents"
    assert f"its search has read {len(both)} of the test documents" in " ".join(other_seed.err.split())
    assert "Use the search's --data and --data-seed 1." in " ".join(other_seed.err.split())
    assert same_seed.code == 0
    assert "has read" not in same_seed.err


def test_a_run_on_another_split_of_the_same_documents_is_named(cli, model: Path, texts: Path, tmp_path: Path) -> None:
    plan, run = tmp_path / "plan.toml", tmp_path / "run"
    data = f'[data]\nsource = "{texts}"\nseed = 1\n[evaluation]\nlengths = []\n'
    plan.write_text(f'version = 1\nexport = "none"\n[[stages]]\nlength = 160\nfactors = "yarn"\n{data}')
    assert cli("extend", model, plan, "-o", run).code == 0
    options = ("eval", model, *LENGTHS, "--data", texts, "--factors", run)
    said = f"{run}: its documents were split with the seed 1, so it may have read some that it is tested on here."
    assert said in " ".join(cli(*options).err.split())
    assert "were split" not in cli(*options, "--data-seed", 1).err


def test_the_first_of_several_corpora_is_kept_when_resumed(cli, refused, model: Path, texts: Path, tmp_path: Path):
    """The questions are about its documents."""
    other = Path(shutil.copytree(texts, tmp_path / "other"))
    for path in other.iterdir():
        path.write_text(path.read_text()[::-1])
    options = ("--retrieval", "recall", "--retrieval-lengths", 150, "--trials", 2, "-o", tmp_path / "run")
    assert cli("eval", model, *LENGTHS, "--data", texts, "--data", other, *options, "--resume").code == 0
    swapped = ("--data", other, "--data", texts)
    refused("prompts_from", "eval", model, *LENGTHS, *swapped, *options, "--resume")


def test_what_it_refuses(refused, cli, model: Path, texts: Path, whole, tmp_path: Path) -> None:
    good = ("eval", model, *LENGTHS, "--data", texts)
    refused("key_tokens = 'pi': not a candidate. Choose one of original, yarn", *good, "--key-tokens", "pi")
    refused("task = 'bogus' is unknown; choose one of niah_single_1", *good, "--retrieval", "recall,bogus")
    refused("stride = 2048: above the longest of lengths, 160", *good, "--stride", "2k")
    refused(
        r"length = 160: too short for task niah_multiquery .* Use at least \d+",
        *good,
        "--retrieval",
        "niah_multiquery",
    )
    recall = (*good, "--retrieval", "recall")
    refused("depths = '2': not numbers from 0 to 1", *recall, "--depths", "2")
    refused("retrieval_lengths = 200: above the longest of lengths, 160", *recall, "--retrieval-lengths", "64,200")
    refused("resume: there is no folder to continue", *good, "--resume")
    folder = Path(shutil.copytree(whole[0], tmp_path / "run"))
    refused("lengths was .* now .*; resume with the same ones", "eval", model, "--lengths", "64,155", *LENGTHS[2:],
            *MORE, "--data", texts, "-o", folder, "--resume")  # fmt: skip
    result = cli(*good, "--retrieval", "all", "--trials", 1, "--json")
    assert result.code == 0, result.err
    assert "Left out: " in result.err  # most do not fit into 160 tokens


TASK = """\
task: local_choice
dataset_path: json
dataset_kwargs: {{data_files: {data}}}
test_split: train
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{{metric: acc}}]
metadata: {{version: 1}}
"""


def test_tasks_of_lm_evaluation_harness(
    cli, model: Path, texts: Path, searched, opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task of one's own, on an extension without exporting it; the right choice is the likeliest."""
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    loaded, tokenizer, _ = opened
    rng = np.random.default_rng(0)
    words = ["the cat", "a mat", "def x", "if y", "return z"]
    rows = [{"text": "sat" + " on" * 30, "choices": [a, b], "answer": int(rng.integers(2))}
            for a, b in (rng.permutation(words)[:2].tolist() for _ in range(8))]  # fmt: skip
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "local.yaml").write_text(TASK.format(data=tmp_path / "data.jsonl"))
    command = ("eval", model, *LENGTHS, "--data", texts, "--factors", searched[0], "--tasks", "local_choice")
    result = cli(*command, "--task-folder", tmp_path, "--json")
    assert result.code == 0, result.err
    for name, factors in {"original": None, str(searched[0]): load_factors(searched[0] / "extension.json")}.items():
        right = 0
        for row in rows:
            scores = []
            for choice in row["choices"]:
                whole = tokenizer(f"{row['text']} {choice}")["input_ids"]
                start = len(tokenizer(row["text"])["input_ids"])
                scores.append(-model_losses(loaded, factors, np.array([whole]))[0][start - 1 :].sum())
            right += int(np.argmax(scores)) == row["answer"]
        assert result.json["tasks"][name]["local_choice"]["acc"] == pytest.approx(right / 8)
    wrong = cli(*command[:-1], "no_such_task", "--json")
    assert (wrong.code, "no_such_task: lm-evaluation-harness knows no such task" in wrong.err) == (2, True)


def test_help_shows_the_extra_as_it_is_typed(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The markup of rich once ate it: pip install longrope."""
    monkeypatch.setenv("COLUMNS", "300")
    shown = cli("eval", "--help")
    assert shown.code == 0
    assert '(pip install "longrope[lm-eval]")' in shown.out


def test_a_model_that_was_trained_meanwhile_is_measured_again(cli, model: Path, texts: Path, tmp_path: Path) -> None:
    tuned = Path(shutil.copytree(model, tmp_path / "tuned"))
    words = ("eval", model, "--lengths", 64, "--documents", 2, "--data", texts, "--checkpoint", tuned, "--json")
    before = cli(*words, "-o", tmp_path / "out")
    assert before.code == 0, before.err
    weights = AutoModelForCausalLM.from_pretrained(tuned)
    with torch.no_grad():
        for parameter in weights.parameters():
            parameter.mul_(1.1)
    weights.save_pretrained(tuned)
    after = cli(*words, "-o", tmp_path / "out", "--resume")
    assert after.code == 0, after.err
    perplexities = [{name: rows[0] for name, rows in run.json["perplexity"].items()} for run in (before, after)]
    assert perplexities[0]["original"] == perplexities[1]["original"]
    assert perplexities[0][str(tuned)] != perplexities[1][str(tuned)]
