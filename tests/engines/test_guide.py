from __future__ import annotations

import re
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import families
import pytest
from gguf import MODEL_ARCH_NAMES

from longrope.engines.guide import launch_lines, serving_guide
from longrope.engines.predict import predict
from longrope.engines.registry import ENGINES, FAMILIES, llama_cpp_attention
from longrope.engines.rules import Engine, Rule, by_launch, formula
from longrope.export.hf_config import config_fields, for_mode
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling
from longrope.schemes import heuristic, yarn

L0, LENGTH = 64, 512


def exported(kind: str, mode: str) -> tuple[dict[str, Any], Extension]:
    plain = families.config(kind, **({"rope_parameters": None} if kind == "phi3" else {}))
    rope = Rope.of(plain)
    long = heuristic(rope, LENGTH)
    short = Scaling([1.0] * (rope.dim // 2), attention_factor=long.attention_factor)
    extension = for_mode(Extension(rope=rope, short=short, long=long, length=LENGTH), mode)
    return config_fields(plain.to_dict(), extension), extension


def sections(text: str) -> dict[str, str]:
    """Return the text under each engine's heading."""
    parts = re.split(r"^## (\S+) \(.*\)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def written(kind: str, mode: str, name: str = "long-model") -> dict[str, str]:
    config, extension = exported(kind, mode)
    return sections(serving_guide(config, extension, mode, name))


@pytest.mark.parametrize("mode", ["dual", "static"])
@pytest.mark.parametrize("kind", FAMILIES.split())
def test_every_engine_has_a_launch_or_a_reason(kind: str, mode: str) -> None:
    guide = written(kind, mode)
    assert list(guide) == list(ENGINES)
    for engine, text in guide.items():
        assert ("```" in text) != ("Do not serve it so" in text), engine


def test_the_lines_of_a_static_llama() -> None:
    guide = written("llama", "static")
    assert "vllm serve long-model --max-model-len 512" in guide["vllm"]
    assert "--model-path long-model --context-length 512" in guide["sglang"]
    assert "mlx_lm.generate --model long-model" in guide["mlx-lm"]
    assert "config.max_seq_len = 512" in guide["exllamav2"]
    assert "max_num_tokens=512" in guide["exllamav3"]
    assert "trtllm-serve long-model --max_seq_len 512" in guide["tensorrt-llm"]
    assert "longrope export long-model --to gguf -o long-model.gguf" in guide["llama.cpp"]
    assert "llama-server -m long-model.gguf -c 512" in guide["llama.cpp"]
    assert not any("Warning" in text for text in guide.values())
    assert "starts for 64 tokens" in guide["vllm"]


def test_warnings_of_a_dual_llama() -> None:
    guide = written("llama", "dual")
    for engine in ("vllm", "mlx-lm", "exllamav2", "exllamav3", "tensorrt-llm", "llama.cpp"):
        assert f"Warning: {engine} uses the long factors at 64 tokens, where the short ones belong" in guide[engine]
    assert "Launched for up to 64 tokens, it uses the short factors" in guide["vllm"]
    assert "short factors up to 64 tokens and the long ones beyond" in guide["transformers"]
    assert "in its cache" in guide["transformers"]


@pytest.mark.parametrize(
    ("kind", "engine", "phrase"),
    [
        ("gemma2", "sglang", "uses no factors at all"),
        ("gemma2", "mlx-lm", "uses no factors at all"),
        ("nemotron", "transformers-4.57", "uses no factors at all"),
        ("cohere", "vllm", "'cohere': vllm stops"),
        ("qwen2", "tensorrt-llm", "'qwen2': tensorrt-llm stops"),
        ("olmo2", "exllamav3", "has no such architecture"),
        ("qwen3", "llama.cpp", "ignores the factors"),
    ],
)
def test_engines_that_would_run_it_wrong(kind: str, engine: str, phrase: str) -> None:
    guide = written(kind, "static")
    assert phrase in guide[engine]
    assert "```" not in guide[engine]


def test_options_without_which_it_does_not_start() -> None:
    assert "vllm serve long-model --max-model-len 512 --enforce-eager\n" in written("smollm3", "static")["vllm"]
    assert "--context-length 512 --disable-cuda-graph\n" in written("smollm3", "static")["sglang"]
    assert "Warning: vllm needs --enforce-eager" in written("smollm3", "static")["vllm"]


@pytest.mark.parametrize(
    ("attention", "option"),
    [(None, ""), (1.1, " --override-kv qwen2moe.rope.scaling.attn_factor=float:0.9106381")],
)
def test_llama_cpp_takes_the_attention_factor_of_a_yarn_from_a_key(attention: float | None, option: str) -> None:
    """It computes 0.1·ln factor + 1 whatever --yarn-attn-factor says, and multiplies it by a key of the file."""
    plain = families.config("qwen2_moe")
    rope = Rope.of(plain)
    scaling = yarn(rope, LENGTH)
    scaling = replace(scaling, attention_factor=attention or scaling.attention_factor)
    extension = for_mode(Extension.of(rope, scaling), "static")
    guide = sections(serving_guide(config_fields(plain.to_dict(), extension), extension, "static", "long-model"))
    assert f"--yarn-beta-slow 1 --yarn-attn-factor 1{option}\n" in guide["llama.cpp"]


def test_each_model_type_of_a_rule_has_a_name_in_llama_cpp() -> None:
    """Mistral's file is of the architecture llama; a key of another name would be ignored."""
    kinds = {kind for engine in ENGINES.values() for kind in (*engine.models, *engine.yarn.models)}
    keys = {llama_cpp_attention(kind, 2).split()[1].removesuffix(".rope.scaling.attn_factor=float:2") for kind in kinds}
    assert keys <= set(MODEL_ARCH_NAMES.values())


def test_lines_for_the_terminal() -> None:
    config, extension = exported("llama", "static")
    lines = launch_lines(config, extension, "a folder")
    assert [shlex.split(line)[0] for line in lines] == ["vllm", "python", "mlx_lm.generate", "trtllm-serve", "longrope"]
    assert "vllm serve 'a folder' --max-model-len 512" in lines
    assert [line.split()[0] for line in launch_lines(*exported("gemma2", "static"), "x")] == ["vllm"]


@pytest.mark.parametrize("name", ["long", "a folder", "it's"])
def test_blocks_are_valid_shell_and_python(name: str, tmp_path: Path) -> None:
    blocks = re.findall(
        r"```(sh|python)\n(.*?)```", serving_guide(*exported("llama", "static"), "static", name), re.DOTALL
    )
    assert {language for language, _ in blocks} == {"sh", "python"}
    for language, code in blocks:
        if language == "python":
            compile(code, "block", "exec")
            assert repr(name) in code
        else:
            subprocess.run(["sh", "-n", "-c", code], check=True, cwd=tmp_path)
            assert name in " ".join(shlex.split(code))


MINE = Engine("1.0", {"llama": Rule(by_launch, formula)}, launch="mine {folder} -n {length}", note="Made for {length}.")


def test_an_engine_from_outside_is_in_every_guide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "mine", MINE)
    config, extension = exported("llama", "static")
    text = sections(serving_guide(config, extension, "static", "a folder"))["mine"]
    assert "mine 'a folder' -n 512" in text
    assert "Made for 512." in text
    assert launch_lines(config, extension, "x")[-1] == "mine x -n 512"
    assert predict("mine", config, extension, limit=L0, length=L0).factors == "short"
    other, extension = exported("gemma2", "static")
    assert "Nobody has read it" in sections(serving_guide(other, extension, "static", "x"))["mine"]


def test_an_engine_without_a_launch_is_refused_where_it_is_made() -> None:
    with pytest.raises(TypeError, match="launch"):
        Engine("1.0", {"llama": Rule(by_launch, formula)})
