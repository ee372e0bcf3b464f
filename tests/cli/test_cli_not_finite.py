"""Numbers that are not finite, by a float16 overflow or a weight: named by eval, search, generate, report, Python."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import longrope as lr
from longrope.errors import LongRopeError
from longrope.tasks.registry import make_prompts
from longrope.tasks.scoring import score_prompts

DTYPE = "The suspect is dtype = float16: use dtype float32 (--dtype float32)."


@pytest.fixture(scope="module")
def overflowing(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose activations are too large for float16, and in float32 those of the plain model."""
    folder = tmp_path_factory.mktemp("models") / "large"
    loaded = AutoModelForCausalLM.from_pretrained(model)
    mlp = loaded.model.layers[0].mlp
    mlp.up_proj.weight.data *= 2.0**17
    mlp.down_proj.weight.data /= 2.0**17
    loaded.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def evaluated(cli, overflowing: Path, few, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("eval")
    words = ("eval", overflowing, "--lengths", "64,256", "--schemes", "yarn", *few[:2], "--documents", 2)
    more = ("--retrieval", "passkey", "--retrieval-lengths", "256", "--trials", 2, "--stride", 32)
    dtypes = {dtype: cli(*words, *more, "--dtype", dtype, "-o", folder / dtype) for dtype in ("float16", "float32")}
    return folder, dtypes


def test_eval_says_it_in_table_and_json(evaluated) -> None:
    folder, results = evaluated
    assert results["float16"].code == 0, results["float16"].err
    out = " ".join(results["float16"].out.split())
    assert "passkey 256: not finite" in out
    for name in ("perplexity", "positions", "sliding", "retrieval"):
        assert re.search(rf"original: numbers are not finite \([^)]*{name}", out)
    assert DTYPE in out
    assert "nan" not in out
    assert out.count("│ not finite") == 4
    record = json.loads((folder / "float16" / "results.json").read_text(), parse_constant=pytest.fail)
    assert record["perplexity"]["yarn"][1]["perplexity"] is None
    assert record["retrieval"]["yarn"][0]["score"] is record["retrieval"]["yarn"][0]["choice"] is None
    assert record["short_context"] == {"yarn": None}
    assert record["differences"]["yarn"][0]["p"] is record["differences"]["yarn"][0]["percent"] is None
    assert set(record["not_finite"]) == {"original", "yarn"}
    whole = json.loads((folder / "float32" / "results.json").read_text())
    assert "not_finite" not in whole
    assert whole["short_context"]["yarn"] is not None
    assert "not finite" not in results["float32"].out


def test_the_report_says_it(cli, evaluated, tmp_path: Path) -> None:
    folder, _ = evaluated
    result = cli("report", folder / "float16", "-o", tmp_path / "report.html")
    assert result.code == 0, result.err
    page = (tmp_path / "report.html").read_text()
    for text in (page, cli("report", folder / "float16").out):
        assert "annot be told: perplexity is not finite" in text
        assert "dtype = float16" in text
        assert "not finite" in text
        assert "NaN" not in text


@pytest.mark.parametrize("method", ["auto", "gradient", "cma", "paper", "simple"])
def test_a_search_stops_after_its_starts(cli, overflowing: Path, few, tmp_path: Path, method: str) -> None:
    words = ("search", overflowing, "-l", 160, *few, "--method", method, "--dtype", "float16", "--budget", 32000)
    result = cli(*words, "-o", tmp_path / "run")
    assert result.code == 2
    assert "no candidate has a finite loss" in result.err
    assert DTYPE in result.err
    assert len((tmp_path / "run" / "search-0.jsonl").read_text().splitlines()) < 40
    assert not (tmp_path / "run" / "extension.json").exists()


@pytest.mark.parametrize("more", [(), ("--temperature", 1), ("--policy", "switch")])
def test_generate_stops(cli, overflowing: Path, tmp_path: Path, more: tuple[object, ...]) -> None:
    assert cli("scale", overflowing, "-l", 256, "-o", tmp_path / "f.json").code == 0
    words = ("generate", overflowing, "the cat", "--factors", tmp_path / "f.json", "--max-new-tokens", 4, *more)
    result = cli(*words, "--dtype", "float16")
    assert result.code == 2
    assert "tokens are not finite" in result.err
    assert DTYPE in result.err
    assert cli(*words, "--dtype", "float32").code == 0


def test_python(overflowing: Path, texts: Path) -> None:
    model, tokenizer = lr.load(str(overflowing), dtype="float16")
    tokens = np.arange(64)[None] % 300
    (record,) = lr.perplexity(model, tokens, [64])
    assert math.isnan(record.perplexity)
    prompts = make_prompts("passkey", tokenizer, length=256, trials=2)
    assert all(math.isnan(score.score) and score.choice is None for score in score_prompts(model, tokenizer, prompts))
    few = lr.SearchOptions(search_documents=1, held_out_documents=1)
    with pytest.raises(LongRopeError, match=r"no candidate has a finite loss.*dtype = float16"):
        lr.search(model, tokenizer, length=128, data=texts, options=few)


def test_a_broken_weight_is_the_suspect_in_float32(cli, model: Path, few, tmp_path: Path) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(model)
    loaded.model.layers[0].mlp.up_proj.weight.data[0, 0] = float("inf")
    loaded.save_pretrained(tmp_path / "broken")
    AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path / "broken")
    words = ("eval", tmp_path / "broken", "--lengths", "128", "--schemes", "pi", *few[:2], "--documents", 2)
    result = cli(*words, "-o", tmp_path / "x")
    assert result.code == 0, result.err
    assert "dtype = float32 has room for large numbers, so the suspects are the weights" in result.out
    result = cli(*words, "--key-tokens", "original")
    assert result.code == 2
    assert "key_tokens: losses are not finite" in result.err
