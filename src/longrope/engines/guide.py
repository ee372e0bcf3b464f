"""How to launch each engine for a checkpoint, and what it will compute: ``SERVING.md`` and the terminal's lines."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from longrope.engines.predict import EnginePrediction, predict
from longrope.engines.registry import ENGINES
from longrope.engines.rules import Rule
from longrope.scaling import Extension

SHELL = {
    "vllm": "vllm serve {folder} --max-model-len {length}",
    "sglang": "python -m sglang.launch_server --model-path {folder} --context-length {length}",
    "mlx-lm": 'mlx_lm.generate --model {folder} --max-tokens 256 --prompt "Hello"',
    "tensorrt-llm": "trtllm-serve {folder} --max_seq_len {length}",
    "llama.cpp": "longrope export {folder} --to gguf -o {file} && llama-server -m {file} -c {length}",
}
OPEN = """\
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained({quoted}, dtype="auto", device_map="auto")
tokenizer = AutoTokenizer.from_pretrained({quoted})"""
PYTHON = {
    "transformers": OPEN,
    "transformers-4.57": OPEN,
    "exllamav2": """\
from exllamav2 import ExLlamaV2, ExLlamaV2Config
config = ExLlamaV2Config({quoted})
config.max_seq_len = {length}  # the attention factor follows this number
model = ExLlamaV2(config)""",
    "exllamav3": """\
from exllamav3 import Cache, Config, Model
config = Config.from_directory({quoted})
model = Model.from_config(config)
cache = Cache(model, max_num_tokens={length})
model.load()""",
}
NOTES = {
    "vllm": "Without `--max-model-len` it starts for {original:,} tokens, whatever the checkpoint is made for.",
    "mlx-lm": "It takes prompts of any length: keep below {length:,} tokens.",
    "exllamav2": "Launched for another length, it computes another attention factor.",
    "exllamav3": "It takes prompts of any length that the cache holds: keep below {length:,} tokens.",
    "tensorrt-llm": "This is read in its source, not run.",
}
MADE = {
    "dual": "The short factors are for sequences of up to {original:,} tokens, the long ones for up to {length:,}.",
    "static": "One set of factors serves every length up to {length:,} tokens (the model was trained on {original:,}).",
}


def serving_guide(config: Mapping[str, Any], extension: Extension, mode: str, folder_name: str) -> str:
    """Markdown: the launch of every engine for a checkpoint, what it then computes, and where that departs.

    Args:
        config: the checkpoint's ``config.json``.
        extension: what it holds.
        mode: ``dual`` or ``static``.
        folder_name: of the checkpoint.
    """
    numbers = {"original": extension.rope.original_length, "length": extension.length}
    head = [f"# Serving {folder_name}", "", MADE[mode].format(**numbers), ""]
    check = f"longrope check {shlex.quote(folder_name)} --engine all"
    head += [f"Ask again for other lengths and launches: `{check} --max-length N --lengths A,B`.", ""]
    return "\n".join(head + [line for engine in ENGINES for line in _section(engine, config, extension, folder_name)])


def launch_lines(config: Mapping[str, Any], extension: Extension, folder: str) -> list[str]:
    """The shell command of every engine that has one and computes with this checkpoint's factors."""
    return [_launch(engine, config, extension, folder) for engine in SHELL if _runs(engine, config, extension)]


def _at(engine: str, config: Mapping[str, Any], extension: Extension, limit: int) -> list[EnginePrediction]:
    """What it computes at L0 and at the longest sequence that it is launched for."""
    lengths = sorted({extension.rope.original_length, limit})
    return [predict(engine, config, extension, limit=limit, length=length) for length in lengths]


def _runs(engine: str, config: Mapping[str, Any], extension: Extension) -> bool:
    return all(one.factors in ("short", "long") for one in _at(engine, config, extension, extension.length))


def _launch(engine: str, config: Mapping[str, Any], extension: Extension, folder: str) -> str:
    quoted, file = shlex.quote(folder), shlex.quote(f"{folder.rstrip('/')}.gguf")
    template = SHELL.get(engine) or PYTHON[engine]
    line = template.format(folder=quoted, file=file, quoted=repr(folder), length=extension.length)
    rule = ENGINES[engine].models[config["model_type"]]
    return f"{line} {rule.options}" if isinstance(rule, Rule) and rule.options else line


def _section(engine: str, config: Mapping[str, Any], extension: Extension, folder: str) -> list[str]:
    title = [f"## {engine} ({ENGINES[engine].version})", ""]
    served = _at(engine, config, extension, extension.length)
    if not _runs(engine, config, extension):
        verdict = "Nobody has read it" if served[-1].factors == "unknown" else "Do not serve it so"
        return [*title, f"{verdict}: {served[-1].departures[0]}.", ""]
    language = "sh" if engine in SHELL else "python"
    block = [f"```{language}", _launch(engine, config, extension, folder), "```", ""]
    original = extension.rope.original_length
    numbers = {"original": original, "length": extension.length}
    said = [_what(served, original)]
    below = predict(engine, config, extension, limit=original, length=original)
    if below.scaling and served[0].scaling and below.scaling.factors != served[0].scaling.factors:
        said.append(f"Launched for up to {original:,} tokens, it uses the {below.factors} factors.")
    if engine in NOTES:
        said.append(NOTES[engine].format(**numbers))
    rule = ENGINES[engine].models[config["model_type"]]
    if isinstance(rule, Rule) and rule.slip:
        said.append(f"Note: {rule.slip}.")
    warned = dict.fromkeys(line for one in served for line in (*one.departures, *one.cautions))
    return [*title, *block, " ".join(said), "", *[f"- Warning: {line}." for line in warned], *([""] if warned else [])]


def _what(served: list[EnginePrediction], original: int) -> str:
    first, last = served[0], served[-1]
    assert last.scaling is not None
    factor = f"attention factor {last.scaling.attention_factor:.6g}"
    if first.scaling is not None and first.scaling.factors == last.scaling.factors:
        return f"It uses the {last.factors} factors at every length ({factor})."
    return f"It uses the short factors up to {original:,} tokens and the long ones beyond ({factor})."
