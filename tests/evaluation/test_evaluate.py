from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

import longrope as lr
from longrope.errors import LongRopeError


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    return lr.load("tiny", dtype="float32")


@pytest.fixture(scope="module")
def rope(tiny: tuple[Any, Any]) -> lr.Rope:
    return lr.Rope.of(tiny[0])


@pytest.fixture(scope="module")
def tokens() -> list[list[int]]:
    return [row[: 512 + 10 * i] for i, row in enumerate(families.tokens(2, 600).tolist())]


@pytest.fixture(scope="module")
def results(tiny: tuple[Any, Any], rope: lr.Rope, tokens: list[list[int]]) -> lr.EvalResults:
    candidates = {"yarn": lr.scheme("yarn", rope, 512), "mine": lr.Extension.of(rope, lr.scheme("ntk", rope, 512))}
    options = lr.EvalOptions(trials=2, stride=200)
    return lr.evaluate(*tiny, candidates, lengths=[256, 512], texts=tokens, retrieval=["recall"], options=options)


def test_it_measures_what_the_parts_measure(
    tiny: tuple[Any, Any], rope: lr.Rope, tokens: list[list[int]], results: lr.EvalResults
) -> None:
    scalings = {"original": None, "yarn": lr.scheme("yarn", rope, 512), "mine": results.candidates["mine"].scaling}
    assert list(results.candidates) == list(scalings)
    for name, scaling in scalings.items():
        expected = lr.perplexity(tiny[0], tokens, lengths=[256, 512], scaling=scaling)
        for record, alone in zip(results["perplexity"][name], expected, strict=True):
            assert (record.length, record.corpus) == (alone.length, "texts")
            assert record.perplexity == pytest.approx(alone.perplexity, rel=1e-5)
    assert results["short_context"]["mine"][0].percent == pytest.approx(0, abs=1e-4)  # short factors up to L0
    assert {record.against for record in results["differences"]["mine"]} == {"original", "yarn"}
    assert [record.length for record in results["sliding"]["yarn"]] == [256, 512]
    assert {record.task for record in results["retrieval"]["yarn"]} == {"recall"}
    assert (results.model, results.dtype, results.lengths) == (tiny[0].config.name_or_path, "float32", (256, 512))


def test_a_task_without_room_at_a_length_is_named(tiny: tuple[Any, Any], caplog: pytest.LogCaptureFixture) -> None:
    """And a group stands for its tasks, as on the command line."""
    request: dict[str, Any] = {"lengths": [64, 1024], "texts": families.tokens(1, 1024).tolist()}
    with caplog.at_level("WARNING", "longrope"):
        found = lr.evaluate(*tiny, **request, retrieval=["vt"], options=lr.EvalOptions(trials=1))
    assert [record.length for record in found["retrieval"]["original"]] == [1024]
    assert "Left out: length = 64: too short for task vt" in caplog.text
    with pytest.raises(lr.LongRopeError, match="too short for task niah_single_1"):
        lr.evaluate(*tiny, lengths=[64], texts=[[1] * 64], retrieval=["ruler"])


def test_a_name_is_a_model_and_strings_are_texts(tiny: tuple[Any, Any]) -> None:
    texts = ["def f(x):\n    return x\n" * 40, "for name in names:\n    print(name)\n" * 40]
    loaded = lr.evaluate(*tiny, lengths=[64, 128], texts=texts)
    named = lr.evaluate("tiny", lengths=[128, 64], texts=texts, options=lr.EvalOptions(dtype="float32"))
    assert named["perplexity"] == loaded["perplexity"]
    assert named.model == "tiny"


def test_the_original_may_be_left_out(tiny: tuple[Any, Any], rope: lr.Rope, tokens: list[list[int]]) -> None:
    candidates = {"pi": lr.scheme("pi", rope, 512)}
    results = lr.evaluate(*tiny, candidates, lengths=[128], texts=tokens, options=lr.EvalOptions(original=False))
    assert list(results["perplexity"]) == ["pi"]
    assert results["short_context"] == {}


def test_an_output_folder_resumes_and_measures_only_new_candidates(
    tiny: tuple[Any, Any], rope: lr.Rope, tokens: list[list[int]], tmp_path: Path
) -> None:
    options = lr.EvalOptions(output=tmp_path / "eval")
    first = lr.evaluate(*tiny, lengths=[128], texts=tokens, options=options)
    journal = (tmp_path / "eval" / "cells.jsonl").read_bytes()
    passes: list[int] = []
    candidates = {"pi": lr.scheme("pi", rope, 512)}
    with tiny[0].model.layers[0].register_forward_hook(lambda *run: passes.append(run[1][0].shape[1])):
        second = lr.evaluate(*tiny, candidates, lengths=[128], texts=tokens, options=options)
    assert [length for length in passes if length > 9] == [128, 128]
    assert second["perplexity"]["original"] == first["perplexity"]["original"]
    assert (tmp_path / "eval" / "cells.jsonl").read_bytes().startswith(journal)
    assert json.loads((tmp_path / "eval" / "results.json").read_text())["lengths"] == [128]
    with pytest.raises(LongRopeError, match="lengths was"):
        lr.evaluate(*tiny, lengths=[256], texts=tokens, options=options)


def test_an_output_folder_is_claimed_before_any_work_and_left_as_it_was(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "plan.toml").write_text("")
    for name, message in (
        ("file/below", "cannot write .*below"),
        ("run", "is a run of longrope extend"),
        ("a/new", "nowhere"),
    ):
        with pytest.raises(LongRopeError, match=message):
            lr.evaluate(*tiny, lengths=[64], data="nowhere", options=lr.EvalOptions(output=tmp_path / name))
    assert {path.name for path in tmp_path.rglob("*")} == {"file", "run", "plan.toml"}


def test_lengths_that_the_texts_do_not_have_are_refused(llama: PreTrainedModel, tiny: tuple[Any, Any]) -> None:
    """100-token texts once gave results labelled 4,096."""
    texts = families.tokens(2, 100).tolist()
    with pytest.raises(LongRopeError, match=r"lengths = \[4096\]: texts\[0\] has 100 tokens, fewer than 4096"):
        lr.evaluate(*tiny, candidates={}, lengths=[4096], texts=texts)
    with pytest.raises(LongRopeError, match=r"texts\[0\] has \d+ tokens, fewer than 4096"):
        lr.evaluate(*tiny, candidates={}, lengths=[4096], texts=["a few words", "and some more"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lengths": [64]}, "texts, data: pass one of them"),
        ({"lengths": [64], "texts": [[1] * 64], "data": "stdlib"}, "texts, data: pass one of them"),
        ({"lengths": [64], "texts": "words"}, "texts: a single string"),
        ({"lengths": [64], "texts": []}, "there is nothing"),
        ({"lengths": [], "texts": [[1] * 64]}, "a loss needs 2 tokens"),
        ({"lengths": [64], "texts": [[1] * 64], "retrieval": ["passky"]}, "task = 'passky' is unknown"),
        ({"lengths": [64], "texts": [[1] * 64], "candidates": {"x": lr.Scaling([1.0, 2.0])}}, "2 "),
        ({"lengths": [64], "texts": [[1] * 64], "options": lr.EvalOptions(key_tokens="pi")}, "key_tokens = 'pi'"),
        ({"lengths": [64], "texts": [[1] * 64], "options": lr.EvalOptions(original=False)}, "nothing to compare"),
        ({"lengths": ["wide"], "texts": [[1] * 64]}, r"lengths\[0\] = 'wide' is not a number of tokens"),
        ({"lengths": [64], "texts": {"input_ids": [[1] * 64]}}, "texts: a mapping with the keys input_ids"),
        ({"lengths": [64], "texts": [[1] * 64], "candidates": ["yarn"]}, "candidates = a list: not scalings by name"),
        ({"lengths": [64], "texts": [[1] * 64], "candidates": {"x": "yarn"}}, r"candidates\['x'\]: scaling = 'yarn'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(tiny: tuple[Any, Any], arguments: Any, message: str) -> None:
    with pytest.raises(LongRopeError, match=message):
        lr.evaluate(*tiny, **arguments)


def test_a_loaded_model_needs_its_tokenizer(tiny: tuple[Any, Any]) -> None:
    with pytest.raises(LongRopeError, match="tokenizer = None: a loaded model needs its tokenizer"):
        lr.evaluate(tiny[0], lengths=[64], texts=[[1] * 64])


def test_one_value_stands_for_a_list(tiny: tuple[Any, Any]) -> None:
    request: dict[str, Any] = {"texts": families.tokens(2, 128).tolist()}
    alone: dict[str, Any] = {"trials": 2.0, "depths": 0.5, "retrieval_lengths": "128", "batch": 1.0}
    options = lr.EvalOptions(**alone)
    single = lr.evaluate(*tiny, lengths="128", retrieval="recall", options=options, **request)
    options = lr.EvalOptions(trials=2, depths=[0.5], retrieval_lengths=[128])
    several = lr.evaluate(*tiny, lengths=[128], retrieval=["recall"], options=options, **request)
    assert single.to_json()["retrieval"] == several.to_json()["retrieval"]
    assert single["perplexity"] == several["perplexity"]
    (alone_loss,), (evaluated,) = lr.perplexity(tiny[0], request["texts"], 128), single["perplexity"]["original"]
    assert alone_loss.losses == evaluated.losses


def test_documents_may_be_texts_records_or_a_table(tiny: tuple[Any, Any]) -> None:
    documents = lr.load_documents("stdlib:unseen")
    results = [
        lr.evaluate(*tiny, lengths=64, data=data)["perplexity"]["original"][0]
        for data in (documents, [{"text": each.text, "id": 1} for each in documents], "stdlib:unseen")
    ]
    assert results[0].losses == results[2].losses
    assert (results[1].length, len(results[1].losses)) == (64, 4)
    with pytest.raises(LongRopeError, match=r"tokenizer = a dict: not a tokenizer\. Give the second"):
        lr.evaluate("tiny", {"mine": None}, lengths=64, data=documents)  # pyright: ignore[reportArgumentType]


def test_arrays_are_texts_too(tiny: tuple[Any, Any]) -> None:
    tokens = families.tokens(2, 64).numpy()
    as_lists = lr.evaluate(*tiny, lengths=[64], texts=tokens.tolist())
    assert lr.evaluate(*tiny, lengths=[64], texts=tokens.astype(np.int32))["perplexity"] == as_lists["perplexity"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("stride", 0), ("stride", 2.5), ("batch", 0), ("documents", 0), ("seed", None)),
        *(("trials", 0), ("questions", "many"), ("original_length", "wide")),
    ],
)
def test_options_that_are_no_numbers_or_lists_are_refused(name: str, value: object) -> None:
    with pytest.raises(LongRopeError, match=f"{name} = "):
        lr.EvalOptions(**{name: value})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("as_given", [np.array, torch.tensor])
def test_lengths_and_depths_are_arrays_too(as_given: Any, tiny: tuple[Any, Any], tmp_path: Path) -> None:
    """The journal and results.json hold them as plain numbers."""
    options = lr.EvalOptions(output=tmp_path, trials=1, depths=as_given([0.5]), retrieval_lengths=as_given([128]))
    texts = families.tokens(1, 128).tolist()
    results = lr.evaluate(*tiny, lengths=as_given([128, 64, 64]), texts=texts, retrieval=["recall"], options=options)
    assert lr.EvalResults.load(tmp_path).lengths == results.lengths == (64, 128)
    assert [record.length for record in lr.perplexity(tiny[0], texts, as_given([128, 64]))] == [128, 64]


def test_an_output_folder_is_not_resumed_with_other_weights_or_factors(llama: PreTrainedModel, tmp_path: Path) -> None:
    """A model that was trained since once got the numbers of before."""
    request: dict[str, Any] = {"lengths": [64], "texts": families.tokens(1, 64).numpy()}
    options = lr.EvalOptions(output=tmp_path)
    first = lr.evaluate(llama, families.tokenizer(), **request, options=options)
    assert lr.evaluate(llama, families.tokenizer(), **request, options=options)["perplexity"] == first["perplexity"]
    lr.apply(llama, lr.scheme("pi", lr.Rope.of(llama), 256))
    with pytest.raises(LongRopeError, match="weights was"):
        lr.evaluate(llama, families.tokenizer(), **request, options=options)
    lr.detach(llama)
    assert lr.evaluate(llama, families.tokenizer(), **request, options=options)["perplexity"] == first["perplexity"]
    llama.model.norm.weight.data.mul_(2)
    with pytest.raises(LongRopeError, match="weights was"):
        lr.evaluate(llama, families.tokenizer(), **request, options=options)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_peft_model_is_evaluated_by_the_model_within_it(llama: PreTrainedModel) -> None:
    texts = families.tokens(1, 64).tolist()
    before = lr.perplexity(llama, texts, [64])
    lora = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    adapted: Any = get_peft_model(llama, lora)
    for measure in (
        lambda: lr.perplexity(adapted, texts, [64]),
        lambda: lr.evaluate(adapted, families.tokenizer(), lengths=[64], texts=texts),
    ):
        with pytest.raises(LongRopeError, match=r"PeftModelForCausalLM: a wrapper of peft.*get_base_model"):
            measure()
    assert lr.perplexity(adapted.get_base_model(), texts, [64]) != before
