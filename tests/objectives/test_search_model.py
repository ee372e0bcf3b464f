"""`longrope.search` from Python: models, names and functions."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import torch
from searching import ROPE, quadratic, slope
from torch import nn

import longrope as lr
from longrope.data.search_texts import search_texts
from longrope.data.weighted_text import WeightedText
from longrope.models.load import load
from longrope.objectives import prepare_search, search_model
from longrope.objectives.backend import processes
from longrope.objectives.starts import make_space
from longrope.provenance import provenance
from longrope.search.registry import METHODS
from longrope.search.space import START_TOKENS

FEW = lr.SearchOptions(budget="6k", search_documents=1, held_out_documents=1, needles=0.0)


def test_a_function_is_minimised_without_naming_a_method() -> None:
    calls = []

    def my_loss(scaling: lr.Scaling) -> float:
        calls.append(scaling)
        return quadratic(scaling)

    found = lr.search(lambda scaling: my_loss(scaling), rope=ROPE, length=2048, options=lr.SearchOptions(budget=150))
    closed = [quadratic(lr.scheme(name, ROPE, 2048)) for name in ("pi", "ntk", "yarn", "heuristic")]
    assert found.held_out["searched"] == quadratic(found.extension.long) < min(closed)
    assert len(calls) == len(set(calls)) <= 150 + len(closed)
    assert found.extension.length == 2048


@pytest.mark.parametrize("factors", [False, True])
@pytest.mark.parametrize(("attention", "expected"), [("none", 1.0), (1.5, 1.5), ("su", None), ("search", None)])
def test_a_winner_has_the_attention_factor_that_the_options_decide(
    attention: str | float, expected: float | None, factors: bool
) -> None:
    best = lr.scheme("yarn", ROPE, 2048)  # with its own attention factor

    def loss(scaling: lr.Scaling) -> float:
        ratios = np.array([*scaling.factors, scaling.attention_factor]) / [*best.factors, best.attention_factor]
        return float((np.log(ratios) ** 2).sum())

    options = lr.SearchOptions(attention=attention, budget=20, factors=[best] if factors else [])
    found = lr.search(loss, rope=ROPE, length=2048, options=options).extension.long
    assert found.scheme == "yarn"
    assert found.attention_factor == (expected or best.attention_factor)


@pytest.mark.parametrize("method", ["auto", "gradient"])
def test_a_function_without_gradient_names_the_methods_that_fit(method: str) -> None:
    with pytest.raises(lr.LongRopeError, match=r"^objective: it has no gradient.* \(cma, paper, simple\)"):
        lr.search(quadratic, rope=ROPE, length=2048, method=method)


def test_a_function_with_a_gradient_is_searched_by_it() -> None:
    found = lr.search(lr.FunctionObjective(quadratic, slope), rope=ROPE, length=2048)
    assert list(found.extension.long.provenance["method"]) == ["Auto"]
    assert min(found.held_out, key=found.held_out.__getitem__) == "searched"


def test_a_gradient_has_a_number_for_each_factor_and_one_for_the_attention_factor() -> None:
    objective = lr.FunctionObjective(quadratic, lambda scaling: slope(scaling)[:-1])
    with pytest.raises(lr.LongRopeError, match=r"^gradient: 8 numbers for 8 factors\. Return the derivative by"):
        lr.search(objective, rope=ROPE, length=2048)


def test_a_function_needs_a_rope() -> None:
    with pytest.raises(lr.LongRopeError, match=r"^rope = None: "):
        lr.search(quadratic, length=2048)


def test_a_function_keeps_no_short_texts() -> None:
    with pytest.raises(lr.LongRopeError, match=r"^keep_short = 0.05: a function has no short texts"):
        lr.search(quadratic, length=2048, rope=ROPE, options=lr.SearchOptions(keep_short=0.05))


def test_a_loaded_model_and_its_name_find_the_same_factors(tmp_path: Path) -> None:
    model, tokenizer = load("tiny", dtype="float32")
    loaded = lr.search(model, tokenizer, length=512, options=FEW)
    named = lr.search(
        "tiny", length="512", output=tmp_path / "run", options=lr.SearchOptions(**{**vars(FEW), "dtype": "float32"})
    )
    assert loaded.held_out == named.held_out
    assert loaded.extension.long.factors == named.extension.long.factors
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["factors"] == list(named.extension.long.factors)


def test_a_run_goes_on_only_with_the_same_weights(tmp_path: Path) -> None:
    model, tokenizer = load("tiny", dtype="float32")
    first = lr.search(model, tokenizer, length=512, output=str(tmp_path), options=FEW)
    again = lr.SearchOptions(**{**vars(FEW), "existing": "resume"})
    before = (tmp_path / "search-0.jsonl").read_bytes()
    assert lr.search(model, tokenizer, length=512, output=tmp_path, options=again).held_out == first.held_out
    assert (tmp_path / "search-0.jsonl").read_bytes() == before
    next(model.parameters()).data[0] += 1
    with pytest.raises(lr.LongRopeError, match="weights was"):
        lr.search(model, tokenizer, length=512, output=tmp_path, options=again)
    with pytest.raises(lr.LongRopeError, match="exists"):
        lr.search(model, tokenizer, length=512, output=tmp_path, options=FEW)


def test_held_out_documents_have_other_lines_at_other_places(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[WeightedText]] = []

    def draw(*documents: Any, **options: Any) -> tuple[list[WeightedText], tuple[str, ...]]:
        texts, names = search_texts(*documents, **options)
        drawn.append(texts)
        return texts, names

    monkeypatch.setattr(prepare_search, "search_texts", draw)
    model, tokenizer = load("tiny", dtype="float32")
    options = lr.SearchOptions(budget="6k", search_documents=1, held_out_documents=1, needles=1.0)
    lr.search(
        model, tokenizer, length=512, data=[f"{number}\n" + "to and fro " * 500 for number in range(8)], options=options
    )
    (searched,), (held_out,) = drawn
    lines = [list(re.finditer(r"(\w+) =", tokenizer.decode(text.tokens))) for text in (searched, held_out)]
    keys, places = ([{line.group(1) for line in found} for found in lines], [found[0].start() for found in lines])
    assert keys[0].isdisjoint(keys[1])
    assert places[0] != places[1]  # before it the documents differ in the digit of their first line alone


def not_called(*_: object, **__: object) -> None:
    raise AssertionError("work before all checks")


def test_an_output_is_claimed_before_any_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "plan.toml").write_text("")
    model, tokenizer = load("tiny", dtype="float32")
    monkeypatch.setattr(prepare_search, "load_documents", not_called)
    again = lr.SearchOptions(existing="overwrite")
    for output, options, message in (
        (tmp_path / "file" / "below", FEW, "cannot write .*below"),
        (tmp_path, FEW, "exists"),
        (tmp_path / "run", again, "is a run of longrope extend"),
        (tmp_path, again, "does not hold a search"),
    ):
        with pytest.raises(lr.LongRopeError, match=message):
            lr.search(model, tokenizer, length=512, output=output, options=options)


@pytest.mark.parametrize(
    ("length", "options", "message"),
    [
        (128, {}, "length = 128 is below the model's original length 256"),
        (512, {"attention": "yrn"}, "'yrn'"),
        (512, {"factors": [lr.Scaling([2.0] * 3)]}, "a start of the search has 3 factors"),
        (512, {"factors": ["nowhere.json"]}, "nowhere.json"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused_before_the_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, length: int, options: dict, message: str
) -> None:
    monkeypatch.setattr(search_model, "open_backend", not_called)
    with pytest.raises(lr.LongRopeError, match=message):
        lr.search("tiny", length=length, options=replace(FEW, dtype="float32", **options))


def test_a_search_that_fails_leaves_no_folder(tmp_path: Path) -> None:
    model, tokenizer = load("tiny", dtype="float32")
    options = lr.SearchOptions(budget=10, search_documents=1, held_out_documents=1)
    for data, message in (("nowhere", "nowhere"), ("stdlib", "one step of this search takes")):
        with pytest.raises(lr.LongRopeError, match=message):
            lr.search(model, tokenizer, length=512, data=data, output=tmp_path / "a" / "run", options=options)
        assert not any(tmp_path.iterdir())


def test_layers_that_factors_cannot_reach_are_named(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    model = families.build("mistral", sliding_window=16)
    model.save_pretrained(tmp_path)
    families.tokenizer().save_pretrained(tmp_path)
    for which in ((model, families.tokenizer()), (str(tmp_path),)):
        caplog.clear()
        with pytest.raises(lr.LongRopeError, match="nowhere"):
            lr.search(*which, length=64, data="nowhere", options=FEW)
        assert "sliding_window = 16: every layer sees a sliding window of at most 16 tokens" in caplog.text


def test_a_loaded_model_needs_its_tokenizer_and_has_no_workers() -> None:
    model = families.build("llama", num_hidden_layers=1)
    with pytest.raises(lr.LongRopeError, match=r"^tokenizer = None: "):
        lr.search(model, length=512)
    with pytest.raises(lr.LongRopeError, match=r"^workers = 2: "):
        lr.search(model, families.tokenizer(), length=512, options=lr.SearchOptions(workers="2"))


def test_a_search_starts_from_schemes_and_factors(tmp_path: Path) -> None:
    mine = lr.Scaling(np.linspace(1, 8, 8).tolist(), scheme="mine", length=2048)
    path = tmp_path / "mine.json"
    path.write_text(mine.to_json())
    for factors in ([mine], [path], [lr.Extension.of(ROPE, mine)]):
        options = lr.SearchOptions(budget=20, schemes=["yarn"], factors=factors)
        assert {"yarn", "mine"} <= set(lr.search(quadratic, rope=ROPE, length=2048, options=options).held_out)
    with pytest.raises(lr.LongRopeError, match="the search has no start"):
        lr.SearchOptions(schemes=[])


@pytest.mark.parametrize("length", [None, 4096])
def test_a_start_that_wins_gets_the_length_of_the_search(length: int | None) -> None:
    mine = lr.Scaling(np.linspace(1, 8, 8).tolist(), scheme="mine", length=length)
    options = lr.SearchOptions(budget=20, factors=[mine])
    extension = lr.search(lambda scaling: 9.0 - (scaling.scheme == "mine"), rope=ROPE, length=2048, options=options)
    assert (extension.extension.long, extension.extension.length) == (replace(mine, length=2048), 2048)


def test_seeds_without_effect_are_refused() -> None:
    options = lr.SearchOptions(seeds=3)
    assert options.method("cma", 2048) is METHODS["cma"]
    for name in ("auto", "gradient"):
        said = rf"^seeds = 3: the method {name} draws nothing, .* Use 1, or .* \(cma, paper, simple\)\.$"
        with pytest.raises(lr.LongRopeError, match=said):
            options.method(name, 2048)


def test_a_gpu_of_another_machine_has_no_name_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert provenance("cuda")["machine"]["device"] == "cuda"  # pyright: ignore[reportIndexIssue]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"minutes": 0}, "minutes = 0: allows nothing"),
        ({"parametrization": "wavy"}, "parametrization = 'wavy' is unknown"),
        ({"schemes": ["yran"]}, "did you mean 'yarn'"),
        ({"budget": "many"}, "budget = 'many'"),
        ({"patience": 0}, "patience = 0"),
        ({"seeds": 0}, "seeds = 0 must be a whole number, 1 or more"),
        ({"batch_size": 0}, "batch_size = 0 must be"),
        ({"search_documents": -1}, "search_documents = -1 must be"),
        ({"held_out_documents": 0}, "held_out_documents = 0 must be"),
        ({"needles": 20}, r"needles = 20: not a weight from 0"),
        ({"needles": "0.2"}, "needles = '0.2': not a number"),
        ({"needles": None}, "needles = None: not a number"),
        ({"minutes": "5"}, "minutes = '5': not a number"),
        ({"keep_short": "1%"}, "keep_short = '1%': not a number"),
        ({"patience": "5"}, "patience = '5' allows nothing"),
        ({"budget": 0.5}, "budget = 0.5 must be a whole number, 1 or more"),
        ({"population": 8.5}, "population = 8.5 must be a whole number, 1 or more"),
        ({"data_seed": -1}, "data_seed = -1 must be a whole number, 0 or more"),
        ({"also": [1]}, r"also\[0\] = 1 must be a whole number, 2 or more"),
        ({"factors": [[1.0, 2.0]]}, r"factors = \[\[1\.0, 2\.0\]\]: give scalings, extensions or paths"),
        ({"existing": "resumed"}, "existing = 'resumed' is unknown; .* did you mean 'resume'"),
    ],
)
def test_options_that_are_not_possible_are_refused(options: dict, message: str) -> None:
    with pytest.raises(lr.LongRopeError, match=message):
        lr.SearchOptions(**options)


@pytest.mark.parametrize(("name", "value"), [("window", 0), ("window", -8), ("window", 1), ("tail", 0), ("tail", 5.5)])
def test_numbers_of_tokens_that_no_text_has_are_refused(name: str, value: float) -> None:
    with pytest.raises(lr.LongRopeError, match=rf"^{name} = {value} must be a whole number, {2 - (name == 'tail')} or"):
        lr.SearchOptions(**{name: value}).text_spec(2048)


def test_one_value_stands_for_a_list_and_torch_names_for_text(tmp_path: Path) -> None:
    mine = lr.Scaling([1.0, 2.0])
    single: dict[str, Any] = {"also": "1k", "schemes": "yarn", "factors": mine, "original_length": "4k"}
    several: dict[str, Any] = {"also": [1024.0], "schemes": ["yarn"], "factors": (mine,), "original_length": 4096}
    assert lr.SearchOptions(**single) == lr.SearchOptions(**several)
    of_torch: dict[str, Any] = {"dtype": torch.bfloat16, "device": torch.device("cuda:0"), "factors": tmp_path}
    options = lr.SearchOptions(**of_torch)
    assert options.factors == (tmp_path,)
    assert (options.dtype, options.device) == ("bfloat16", "cuda:0")


@pytest.mark.parametrize(
    ("start_tokens", "choices"),
    [((0, 4), (0, 4)), (4, (4,)), (np.array([0, 8]), (0, 8)), (np.True_, START_TOKENS), (False, (0,))],
)
def test_start_tokens_may_be_the_numbers_to_choose_from(start_tokens: Any, choices: tuple[int, ...]) -> None:
    """The numbers were once taken for True, so that others were searched."""
    options = lr.SearchOptions(start_tokens=start_tokens)
    assert make_space(ROPE, 2048, METHODS["cma"], options).start_tokens == choices


def test_numbers_of_numpy_and_whole_floats_are_those_of_python(tmp_path: Path) -> None:
    objective, places = lr.FunctionObjective(quadratic, slope), (tmp_path / "numpy", tmp_path / "python")
    numbers = {"population": 4, "patience": 9, "minutes": 1.0, "seeds": 1, "data_seed": 3}
    options = (
        lr.SearchOptions(budget=6e1, **{name: np.array(number)[()] for name, number in numbers.items()}),
        lr.SearchOptions(budget=60, **numbers),
    )
    for folder, length, settings in zip(places, (np.int64(2048), 2048), options, strict=True):
        lr.search(objective, rope=ROPE, length=length, output=folder, options=settings)
    assert replace(options[0], budget=60) == options[1]
    first, second = (json.loads((folder / "run.json").read_text()) for folder in places)
    assert first | {"provenance": {}} == second | {"provenance": {}}
    assert lr.SearchOptions(keep_short=np.float32(0.5), needles=np.float32(0.5)).keep_short.__class__ is float


def test_documents_may_be_a_list_of_texts() -> None:
    model, tokenizer = load("tiny", dtype="float32")
    documents = lr.load_documents("stdlib:unseen")
    given = lr.search(model, tokenizer, length="512", data=documents, options=FEW)
    assert given.held_out == lr.search(model, tokenizer, length=512, data="stdlib:unseen", options=FEW).held_out
    with pytest.raises(lr.LongRopeError, match="tokenizer = a dict: not a tokenizer"):
        lr.search(model, {"yarn": None}, length=512, options=FEW)  # pyright: ignore[reportArgumentType]
    with pytest.raises(lr.LongRopeError, match="not searched"):
        lr.search(tokenizer, model, length=512, options=FEW)  # pyright: ignore[reportArgumentType]


def test_a_model_that_is_none_is_named() -> None:
    with pytest.raises(lr.LongRopeError, match=r"model = a Linear: not searched\. Give a model's name"):
        lr.search(nn.Linear(2, 2), length=2048)  # pyright: ignore[reportArgumentType]
    with pytest.raises(lr.LongRopeError, match="model = a int: not searched"):
        lr.search(3, length=2048)  # pyright: ignore[reportArgumentType]
    with pytest.raises(lr.LongRopeError, match=r"no-such-folder"):
        lr.search(Path("no-such-folder"), length=2048)


def test_numbers_of_workers() -> None:
    assert processes(lr.SearchOptions(workers=2).workers) == 2  # pyright: ignore[reportArgumentType]


def test_a_parametrization_without_effect_is_refused() -> None:
    options = lr.SearchOptions(parametrization="spline")
    assert options.method("cma", 2048) is METHODS["cma"]
    with pytest.raises(lr.LongRopeError, match=r"has no effect on the method paper\. .* auto, gradient, cma\.$"):
        options.method("paper", 2048)
