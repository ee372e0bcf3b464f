"""What a probe says of a real model behind a server: the set that it computes with, at which length, and its faults."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from model_server import ModelServer, serving
from transformers import AutoModelForCausalLM

from longrope.errors import LongRopeError
from longrope.models.load import load, load_config
from longrope.rope import Rope
from longrope.scaling import Scaling
from longrope.schemes import scheme
from longrope.servers.client import connect
from longrope.servers.probe import ServerProbe, probe_server
from longrope.servers.probe_prompts import STEPS, probe_lengths, text_prompts
from longrope.servers.served_sets import ServedSets

LENGTHS = (128, 288, 512)


@pytest.fixture(scope="session")
def probe(tiny, checkpoint, documents) -> Callable[..., ServerProbe]:
    """Function (checkpoint, options of `ModelServer`) that probes a server of the plain ``tiny`` or another model."""
    loaded: dict[str, Any] = {}

    def run(mode: str, *, count: int = 1, **options: Any) -> ServerProbe:
        folder = str(checkpoint(mode))
        loaded[mode] = loaded.get(mode) or load(folder, dtype="float32")[0]
        served = ServedSets.of(load_config(folder))
        server = ModelServer(**{"model": tiny[0], "tokenizer": tiny[1], **options})
        with serving(server.reply) as url:
            return probe_server(
                connect(url),
                served,
                tiny[1],
                documents[:count],
                LENGTHS,
                open_model=lambda: loaded[mode],
                on_progress=lambda *_: None,
            )

    return run


def ramp(tiny: Any) -> Scaling:
    return scheme("ramp", Rope.of(tiny[0]), 512)


def test_a_checkpoint_that_transformers_opened_computes_as_made(probe, checkpoint) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint("static")).eval()
    result = probe("static", model=model)
    assert result.ok
    assert result.has_logprobs
    for row in result.lengths:
        assert row.runs == ("longrope",)
        assert row.distances["longrope"] < 1e-3
        assert min(distance for name, distance in row.distances.items() if name != "longrope") > 0.1


@pytest.mark.parametrize("form", ["ids", "texts", "objects"])
def test_dropped_factors_are_seen_in_every_form_of_log_probabilities(probe, form: str) -> None:
    result = probe("static", form=form)
    assert [row.runs for row in result.lengths] == [("original",)] * 3
    assert result.departures == ["at 128 to 512 tokens the server computes with original, where longrope belongs"]
    assert max(row.distances["original"] for row in result.lengths) < 1e-3


def test_without_log_probabilities_the_chosen_tokens_decide(probe, tiny) -> None:
    result = probe("static", form="none", count=2)
    assert not result.has_logprobs
    assert result.lengths[-1].runs == ("original",)
    assert all("original" in row.runs for row in result.lengths)
    assert result.lengths[-1].recalled == 0  # the line lies beyond L0, where the plain model is lost
    right = probe("static", form="none", count=2, scaling=ramp(tiny))
    assert right.ok
    assert right.lengths[-1].recalled == 1
    assert all(row.distances["longrope"] < 0.1 for row in right.lengths)  # texts are split into tokens again


def test_one_set_at_every_length_departs_from_two(probe, tiny) -> None:
    long = dataclasses.replace(ramp(tiny), attention_factor=1.0)
    result = probe("dual", scaling=long)
    assert [row.runs for row in result.lengths] == [("long",)] * 3
    assert [row.ok for row in result.lengths] == [False, True, True]
    assert result.departures == ["at 128 tokens the server computes with long, where short belongs"]


def test_an_engines_own_attention_factor_is_named(probe, tiny) -> None:
    result = probe("dual", scaling=ramp(tiny))
    assert {row.runs for row in result.lengths} == {("attention factor by formula",)}
    dropped = probe("static", scaling=dataclasses.replace(ramp(tiny), attention_factor=1.0))
    assert {row.runs for row in dropped.lengths} == {("attention factor 1",)}


def test_factors_of_nobody_are_none_of_the_sets(probe, tiny) -> None:
    strange = Scaling([1.3] * 32, length=512)
    result = probe("static", scaling=strange)
    assert result.lengths[-1].runs == ()
    assert "computes with none of longrope, original, yarn, attention factor 1" in result.departures[-1]


@pytest.mark.parametrize(("scaled", "runs"), [(True, "yarn"), (False, "original")])
def test_a_yarn_line_is_in_effect_or_not(probe, tiny, scaled: bool, runs: str) -> None:
    result = probe("yarn", scaling=scheme("yarn", Rope.of(tiny[0]), 512) if scaled else None)
    assert {row.runs for row in result.lengths} == {(runs,)}
    assert result.ok == scaled


def test_a_launch_for_too_few_tokens_is_seen_by_refusals(probe, tiny) -> None:
    result = probe("static", scaling=ramp(tiny), limit=300)
    assert [row.ok for row in result.lengths] == [True, True, False]
    assert result.departures == [
        "at 512 tokens the server refuses the prompt (maximum context length is 300 tokens)",
    ]


def test_a_launch_for_fewer_tokens_than_the_checkpoint_is_named_from_the_list(probe, tiny, documents) -> None:
    result = dataclasses.replace(probe("static", scaling=ramp(tiny), limit=512), length=1024)
    assert result.departures == ["the server takes 512 tokens, and the checkpoint is made for 1,024"]


def test_a_prompt_that_is_cut_without_an_error_is_seen_by_its_tokens(probe, tiny) -> None:
    result = probe("static", scaling=ramp(tiny), cut=300)
    assert [row.ok for row in result.lengths] == [True, True, False]
    assert result.lengths[-1].read == 300
    assert "cuts the prompt without an error (it reads 300 of 49" in result.departures[-1]


def test_another_beginning_of_the_text_is_named_and_still_compared(probe, tiny) -> None:
    result = probe("static", scaling=ramp(tiny), bos=True)
    [departure] = result.departures
    assert departure.startswith("the server reads a beginning-of-text token")
    assert all(row.runs == ("longrope",) and row.distances["longrope"] < 1e-3 for row in result.lengths)


def test_another_tokenizer_is_refused(probe, other_bpe) -> None:
    with pytest.raises(LongRopeError, match=r"its tokenizer makes .*\. Give the checkpoint that the server runs"):
        probe("static", tokenizer=other_bpe)


def test_a_server_that_refuses_everything_is_an_error(probe) -> None:
    with pytest.raises(LongRopeError, match="maximum context length is 8 tokens"):
        probe("static", limit=8)


def test_prompts_are_on_their_side_of_the_border(tiny, documents) -> None:
    for prompt in text_prompts(tiny[1], documents, LENGTHS):
        assert tiny[1](prompt.text)["input_ids"] == list(prompt.tokens)
        assert len(prompt.tokens) + STEPS <= prompt.length
        assert (len(prompt.tokens) > 256) == (prompt.length > 256)
    assert len({prompt.tokens[:4] for prompt in text_prompts(tiny[1], documents, LENGTHS)}) == 2 * len(LENGTHS)


def test_the_lengths_end_at_the_longest() -> None:
    assert probe_lengths(256, 512) == [128, 256, 288, 512]
    assert probe_lengths(4096, 20000) == [2048, 4096, 4128, 8192, 16384, 20000]


@pytest.mark.parametrize("kind", ["default", "dynamic"])
def test_a_checkpoint_without_one_set_is_refused(kind: str) -> None:
    config = load_config("tiny")
    config.rope_parameters = {**config.rope_parameters, "rope_type": kind, "factor": 2.0}
    with pytest.raises(LongRopeError, match="carries no rope scaling" if kind == "default" else "change with every"):
        ServedSets.of(config)
