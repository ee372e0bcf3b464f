from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import all_types
import families
import numpy as np
import pytest
from transformers import AutoConfig, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from longrope.engines.predict import EnginePrediction, extension_in_config, find_engines, predict
from longrope.engines.registry import ENGINES, FAMILIES, IMAGES, LATENT
from longrope.engines.rules import Rule, unscaled
from longrope.errors import LongRopeError
from longrope.export.hf_config import config_fields, for_mode
from longrope.formats.hf_config import extension_of_config
from longrope.models.load import load_config
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling
from longrope.schemes import attention_factor, heuristic, yarn
from longrope.yarn_fit import betas

L0, LENGTH = 64, 512
OTHERS = [*IMAGES.split(), *LATENT.split()]
MEASURED = json.loads((Path(__file__).parents[2] / "benchmarks" / "results" / "serving.json").read_text())["cells"]
ROPE = Rope(dim=16, base=10000.0, original_length=L0)
SU = attention_factor("su", ROPE, LENGTH)


@cache
def exported(kind: str, mode: str = "dual", attention: float | None = None) -> tuple[dict[str, Any], Extension]:
    """The config of an exported checkpoint, and its extension: short factors that rise, long ones by the heuristic."""
    fields = {"rope_parameters": None} if kind == "phi3" else {}
    if kind in OTHERS:
        plain = all_types.small_config(kind)
    else:
        plain = load_config("tiny") if kind == "tiny" else families.config(kind, **fields)
    config = {**plain.to_dict(), "model_type": plain.model_type}
    rope = Rope.of(plain)
    long = heuristic(rope, 8 * rope.original_length)
    factor = attention or long.attention_factor
    short = Scaling([1 + i / rope.dim for i in range(rope.dim // 2)], attention_factor=factor)
    long = Scaling(long.factors, attention_factor=factor)
    extended = for_mode(Extension(rope=rope, short=short, long=long, length=8 * rope.original_length), mode)
    return config_fields(config, extended), extended


def served(engine: str, kind: str, length: int, limit: int = LENGTH, mode: str = "dual") -> EnginePrediction:
    config, extension = exported(kind, mode)
    return predict(engine, config, extension, limit=limit, length=length)


@pytest.mark.parametrize("key", MEASURED)
def test_the_rule_is_what_the_engine_computed(key: str) -> None:
    """Against what engines gave, each by its own code (benchmarks/serving.py)."""
    engine, kind, mode, limit = key.split()
    measurement = MEASURED[key]
    config, extension = exported(kind, mode)
    if "error" in measurement:
        prediction = predict(engine, config, extension, limit=int(limit), length=L0)
        assert (prediction.factors, prediction.ok) == ("refused", False)
        return
    assert measurement["version"] == ENGINES[engine].version
    for length, row in measurement["lengths"].items():
        prediction = predict(engine, config, extension, limit=int(limit), length=int(length))
        if row["set"] == "other":
            assert (prediction.scaling, prediction.ok) == (None, False)
            continue
        sets = {"short": extension.short.factors, "long": extension.long.factors, "none": [1.0] * len(config)}
        assert prediction.scaling is not None
        assert prediction.scaling.factors == tuple(sets[row["set"]][: len(prediction.scaling.factors)]), length
        if "attention_factor" in row:
            assert prediction.scaling.attention_factor == pytest.approx(row["attention_factor"], rel=1e-6)
        same = np.isclose(prediction.scaling.attention_factor, extension.long.attention_factor)
        assert prediction.ok == (row["from ours"] < 1e-2 and row.get("last position") != "other" and same), length


@pytest.mark.parametrize("kind", ["llama", "phi3", "gemma2", "gemma3_text", "gpt_neox"])
@pytest.mark.parametrize("length", [L0, L0 + 1])
def test_transformers_own_functions_give_the_same(kind: str, length: int) -> None:
    config, _ = exported(kind)
    layer = "full_attention" if kind == "gemma3_text" else None
    extended = AutoConfig.for_model(**config)
    inv_freq, factor = ROPE_INIT_FUNCTIONS["longrope"](extended, "cpu", seq_len=length, layer_type=layer)
    prediction = served("transformers", kind, length)
    assert prediction.ok
    assert prediction.scaling is not None
    np.testing.assert_allclose(prediction.scaling.inv_freq(extension_in_config(config).rope), inv_freq, rtol=1e-6)
    assert prediction.scaling.attention_factor == pytest.approx(factor)


@pytest.mark.parametrize("kind", [*FAMILIES.split(), *OTHERS])
def test_the_config_holds_the_extension(kind: str) -> None:
    config, extension = exported(kind)
    configured = extension_in_config(config)
    assert (configured.rope, configured.length) == (extension.rope, extension.length)
    assert (configured.short.factors, configured.long.factors) == (extension.short.factors, extension.long.factors)
    assert configured.long.attention_factor == pytest.approx(extension.long.attention_factor)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", FAMILIES.split())
def test_one_set_serves_everywhere_where_an_engine_reads_it(engine: str, kind: str) -> None:
    for length in (L0, LENGTH):
        prediction = served(engine, kind, length, mode="static")
        assert prediction.ok == (prediction.factors in ("short", "long"))
        assert all("needs --" in line for line in prediction.cautions)
        if not prediction.ok:
            assert engine in prediction.departures[0]
            assert repr(kind) in prediction.departures[0]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_model_type_that_was_not_read_is_named(engine: str) -> None:
    config, extension = exported("llama")
    prediction = predict(engine, {**config, "model_type": "martian"}, extension, limit=LENGTH, length=L0)
    assert (prediction.factors, prediction.scaling, prediction.ok) == ("unknown", None, False)
    assert engine in prediction.departures[0]
    assert "'martian'" in prediction.departures[0]


def test_launched_for_more_than_the_engine_takes() -> None:
    for engine in ("vllm", "sglang"):
        prediction = served(engine, "llama", 100, limit=LENGTH + 1)
        assert prediction.factors == "refused"
        assert "513 tokens: max_position_embeddings is 512" in prediction.departures[0]
    assert served("tensorrt-llm", "llama", LENGTH, limit=2 * LENGTH).ok
    assert "up to 512 tokens when launched for 1,024" in served("tensorrt-llm", "llama", 600, 1024).departures[0]
    for engine in ("transformers", "mlx-lm", "exllamav3", "llama.cpp"):
        assert served(engine, "llama", 600, limit=1024).departures == ("the checkpoint is made for up to 512 tokens",)


def test_a_sequence_longer_than_the_launch() -> None:
    assert served("vllm", "llama", 101, limit=100).factors == "refused"
    assert served("vllm", "llama", 100, limit=100).factors == "long"
    assert served("transformers", "llama", 101, limit=100).ok  # it is not launched for a length


def test_the_attention_factor_of_exllamav2_follows_the_launch() -> None:
    prediction = served("exllamav2", "llama", 200, limit=256)
    assert prediction.scaling is not None
    assert prediction.scaling.attention_factor == pytest.approx((1 + np.log(4) / np.log(64)) ** 0.5)
    assert "attention factor of 1.1547 at 200 tokens, where 1.22474 belongs" in prediction.departures[0]


@pytest.mark.parametrize("engine", ENGINES)
def test_an_attention_factor_off_the_formula(engine: str) -> None:
    config, extension = exported("llama", "static", 1.0)
    prediction = predict(engine, config, extension, limit=LENGTH, length=LENGTH)
    reads = engine in ("transformers", "transformers-4.57", "vllm", "sglang", "llama.cpp")
    assert prediction.scaling is not None
    assert prediction.scaling.attention_factor == pytest.approx(1.0 if reads else SU)
    assert prediction.ok == reads


def test_what_transformers_5_saves_is_the_plain_rope_elsewhere() -> None:
    """Without ``rope_scaling`` and the fields beside it."""
    config, extension = exported("llama")
    saved = LlamaConfig(**config).to_dict()
    saved = {key: value for key, value in saved.items() if key != "rope_scaling"}
    predictions = {name: predict(name, saved, extension, limit=LENGTH, length=100) for name in ENGINES}
    plain = {name for name, prediction in predictions.items() if prediction.factors == "none"}
    assert all("reads rope_scaling alone" in predictions[name].departures[1] for name in plain)
    assert plain == {
        "transformers-4.57",
        "mlx-lm",
        "exllamav2",
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope_scaling": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "no longrope factors"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 8.0}}, "no longrope factors"),
        ({"rope_scaling": 3, "rope_parameters": []}, "no longrope factors"),
        ({"max_position_embeddings": None}, "length = None must be a whole number"),
        ({"rope_scaling": {"type": "longrope", "long_factor": [2.0]}}, "config.json: a field is missing or bad"),
        ({"original_max_position_embeddings": "64"}, "original_length = '64'"),
    ],
)
def test_configs_without_usable_factors(fields: dict[str, Any], message: str) -> None:
    config, extension = exported("llama")
    with pytest.raises(LongRopeError, match=message):
        predict("vllm", {**config, **fields}, extension, limit=LENGTH, length=L0)


def test_names_of_engines() -> None:
    assert find_engines("all") == list(ENGINES)
    assert find_engines("vllm") == ["vllm"]
    with pytest.raises(LongRopeError, match="engine = 'vlm' is unknown; choose one of all, transformers"):
        find_engines("vlm")


def test_tensorrt_llm_hands_the_launched_length_to_phi3_alone() -> None:
    """`Phi3Attention` sets `config.max_seq_len`, by which `RopeParams` chooses; other classes leave it None: long."""
    for kind, which in (("phi3", "short"), ("llama", "long")):
        assert served("tensorrt-llm", kind, L0, limit=L0).factors == which
        assert served("tensorrt-llm", kind, L0).factors == "long"
    assert served("tensorrt-llm", "gemma3_text", LENGTH).factors == "none"


def test_llama_cpp_rounds_its_context_up_to_256() -> None:
    assert served("llama.cpp", "llama", 50, limit=L0).factors == "long"
    config, extension = exported("tiny")
    for limit, which in ((extension.rope.original_length, "short"), (extension.rope.original_length + 1, "long")):
        assert predict("llama.cpp", config, extension, limit=limit, length=50).factors == which


def test_sglang_slips_at_one_token_beyond() -> None:
    """Its table is entered at row L0, which is position 0 of the long set, as its own code showed (serving.json)."""
    for mode in ("dual", "static"):
        assert any("position 0" in line for line in served("sglang", "llama", L0 + 1, mode=mode).departures)
        assert served("sglang", "llama", L0 + 2, mode=mode).ok


def test_two_sets_come_with_the_cautions_of_serving() -> None:
    assert "read in pieces" in served("sglang", "llama", 100).cautions[0]
    assert "recomputed" in served("transformers", "phi3", 100).cautions[0]
    assert not served("vllm", "llama", 100).cautions
    assert not served("sglang", "llama", 100, mode="static").cautions


DOCUMENTED = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
WORDS = {"ssll": "both", "sssl": "both", "slll": "launch", "llll": "long", "ssss": "short"}


def word(engine: str, kind: str) -> str:
    """What docs/serving.md calls it: at L0 launched for L0, then launched for more at L0, L0 + 1 and L0 + 2."""
    rule = ENGINES[engine].models[kind]
    if not isinstance(rule, Rule):
        return next((one for one in ("stops", "wrong") if one in rule), "–")
    if rule.attention is unscaled:
        return "plain"
    asked = [(1024, 1024), (4096, 1024), (4096, 1025), (4096, 1026)]
    return WORDS["".join(rule.choice(1024, limit, length)[0] for limit, length in asked)]


def was_run(engine: str, kind: str) -> bool:
    if engine in ("transformers", "llama.cpp"):  # test_huggingface.py, test_llama_cpp.py
        return word(engine, kind) != "–"
    measurements = [measurement for key, measurement in MEASURED.items() if key.startswith(f"{engine} {kind} ")]
    return any(measurement.get("verified", "run") == "run" for measurement in measurements)


@pytest.mark.parametrize("kind", FAMILIES.split())
def test_the_table_of_the_docs_is_what_the_rules_say(kind: str) -> None:
    [row] = [line for line in DOCUMENTED.splitlines() if line.startswith(f"| {kind} |")]
    measurements = [f"**{word(engine, kind)}**" if was_run(engine, kind) else word(engine, kind) for engine in ENGINES]
    assert row == f"| {kind} | {' | '.join(measurements)} |"


@pytest.mark.parametrize("kind", OTHERS)
def test_the_second_table_of_the_docs_is_what_the_rules_say(kind: str) -> None:
    """An engine without a rule for the model type has a question mark, and `predict` says that nothing is known."""
    [row] = [line for line in DOCUMENTED.splitlines() if line.startswith(f"| {kind} |")]
    words = [word(engine, kind) if kind in ENGINES[engine].models else "?" for engine in ENGINES]
    run = [f"**{each}**" if "transformers" in engine else each for engine, each in zip(ENGINES, words, strict=True)]
    assert row == f"| {kind} | {' | '.join(run).replace('**–**', '–')} |"


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("engine", ENGINES)
def test_models_that_read_images_and_latent_attention(engine: str, kind: str) -> None:
    prediction = served(engine, kind, LENGTH, mode="static")
    rule = ENGINES[engine].models.get(kind)
    assert prediction.ok == (isinstance(rule, Rule) and rule.attention is not unscaled)
    if rule is None:
        assert prediction.departures == (f"what {engine} does with model type {kind!r} is not known",)
    elif isinstance(rule, str):
        assert rule in prediction.departures[0]


@pytest.mark.parametrize("engine", sorted(set(ENGINES) - {"llama.cpp"}))
def test_the_docs_name_the_versions(engine: str) -> None:
    assert ENGINES[engine].version in DOCUMENTED


def yarn_checkpoint(kind: str, factor: float = 8.0, attention: float | None = None) -> tuple[dict[str, Any], Extension]:
    """The config of a checkpoint that is exported as a YaRN, and its extension."""
    plain = families.config(kind)
    rope = Rope.of(plain)
    first = min(1, rope.dim // 2 - 2)
    scaling = yarn(rope, LENGTH, factor=factor, **betas(rope, first, max(rope.dim // 2 - 2, first + 1)))
    scaling = replace(scaling, attention_factor=attention or scaling.attention_factor)
    extension = for_mode(Extension.of(rope, scaling), "static")
    return config_fields({**plain.to_dict(), "model_type": plain.model_type}, extension), extension


YARN_DEPARTS = {  # engine -> model types that do not compute a YaRN of s
    "transformers": set(),
    "transformers-4.57": {"nemotron", "olmo2"},
    "vllm": {"gpt_neox"},
    "sglang": {"gemma2", "mixtral", "phi", "stablelm", "starcoder2"},
    "mlx-lm": {
        *("cohere", "gemma2", "mixtral", "phi", "stablelm", "starcoder2"),
        *("nemotron", "qwen2_moe", "glm", "gpt_neox"),
    },
    "exllamav2": set(FAMILIES.split()),
    "exllamav3": {*("glm", "gpt_neox", "granite", "nemotron", "olmo2", "phi", "qwen2_moe", "stablelm", "starcoder2")},
    "tensorrt-llm": {
        *("cohere", "gemma2", "gemma3_text", "glm", "gpt_neox", "granite", "olmo2", "olmo3", "phi", "smollm3"),
        "stablelm",
    },
    "llama.cpp": set(),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", sorted(set(FAMILIES.split()) - {"phi3"}))
def test_which_engines_compute_a_yarn(engine: str, kind: str) -> None:
    config, extension = yarn_checkpoint(kind)
    for length in (L0, L0 + 1, LENGTH):
        prediction = predict(engine, config, extension, limit=LENGTH, length=length)
        assert prediction.ok == (kind not in YARN_DEPARTS[engine]), prediction
        assert not prediction.cautions
        if prediction.ok:
            assert prediction.scaling is not None
            np.testing.assert_allclose(prediction.scaling.factors, extension.long.factors, rtol=1e-9)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_factor_above_s_and_an_attention_factor_of_its_own(engine: str) -> None:
    config, extension = yarn_checkpoint("llama", factor=9.0)
    prediction = predict(engine, config, extension, limit=LENGTH, length=LENGTH)
    assert prediction.ok == (engine not in ("exllamav2", "exllamav3"))
    assert prediction.factors == ("long" if prediction.ok else "other")
    config, extension = yarn_checkpoint("llama", attention=1.05)
    assert config["rope_scaling"]["attn_factor"] * (1 + math.log(8) / 10) == pytest.approx(1.05)
    prediction = predict(engine, config, extension, limit=LENGTH, length=LENGTH)
    assert prediction.ok == (engine not in ("mlx-lm", "exllamav2", "tensorrt-llm"))


@pytest.mark.parametrize(
    ("engine", "kind", "fault"),
    [
        ("vllm", "qwen3_vl", None),
        ("vllm", "qwen2_5_vl", "takes 4·L0 for L0"),
        ("sglang", "qwen3_vl", None),
        ("sglang", "qwen2_5_vl", None),
        ("mlx-lm", "qwen3_vl", None),
        ("mlx-lm", "minicpm3", "reads no YaRN"),
    ],
)
def test_a_yarn_where_the_rule_of_longrope_does_not_hold(engine: str, kind: str, fault: str | None) -> None:
    plain = all_types.small_config(kind)
    rope = Rope.of(plain)
    extension = for_mode(Extension.of(rope, yarn(rope, 8 * rope.original_length)), "static")
    config = config_fields({**plain.to_dict(), "model_type": plain.model_type}, extension)
    prediction = predict(engine, config, extension, limit=extension.length, length=extension.length)
    assert prediction.ok == (fault is None), prediction
    if fault is not None:
        assert fault in prediction.departures[0]


def test_exllamav2_computes_the_band_of_the_launched_length() -> None:
    config, extension = yarn_checkpoint("llama")
    assert predict("exllamav2", config, extension, limit=L0, length=L0).factors == "none"
    launched = predict("exllamav2", config, extension, limit=LENGTH, length=LENGTH)
    assert launched.scaling is not None
    expected = yarn(replace(extension.rope, original_length=LENGTH), LENGTH, factor=8.0)
    assert launched.scaling.factors == expected.factors
    assert "factors of its own at 512 tokens, where the checkpoint's belong" in launched.departures[0]


def test_a_yarn_without_rope_scaling_is_the_plain_rope_elsewhere() -> None:
    config, extension = yarn_checkpoint("llama")
    saved = {key: value for key, value in config.items() if key != "rope_scaling"}
    assert predict("vllm", saved, extension, limit=LENGTH, length=LENGTH).ok
    prediction = predict("mlx-lm", saved, extension, limit=LENGTH, length=LENGTH)
    assert prediction.factors == "none"
    assert "reads rope_scaling alone" in prediction.departures[1]


def test_a_published_phimoe_runs_as_made() -> None:
    """Its config names an attention factor for each set, off the formula, and no common one (Phi-3.5-MoE)."""
    config = {
        "model_type": "phimoe",
        "head_dim": 128,
        "rope_theta": 10000.0,
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0] * 64,
            "long_factor": [2.0] * 64,
            "short_mscale": 1.25,
            "long_mscale": 1.243163121016122,
        },
    }
    extension = extension_in_config(config)
    expected = extension_of_config({**config, "rope_scaling": {**config["rope_scaling"], "rope_type": "longrope"}})
    assert extension.short.attention_factor == expected.short.attention_factor == 1.25
    assert extension.long.attention_factor == expected.long.attention_factor == 1.243163121016122
    for length in (4096, 131072):
        assert predict("sglang", config, extension, limit=131072, length=length).departures == ()
