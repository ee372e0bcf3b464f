"""How to launch each engine for a checkpoint, and what it will compute: ``SERVING.md`` and the terminal's lines."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from longrope.engines.predict import EnginePrediction, predict, predict_ends, yarn_scaling
from longrope.engines.registry import ENGINES, llama_cpp_attention
from longrope.engines.rules import Rule
from longrope.rope import text_fields
from longrope.scaling import Extension

SETS = {
    "dual": "The short factors are for sequences of up to {original:,} tokens, the long ones for up to {length:,}.",
    "static": "One set of factors serves every length up to {length:,} tokens (the model was trained on {original:,}).",
}


def serving_guide(config: Mapping[str, Any], extension: Extension, mode: str, folder_name: str) -> str:
    """Return Markdown with the launch of every engine, the factors that it then computes with, and its faults.

    Args:
        config: The checkpoint's ``config.json``.
        extension: Factors of the checkpoint.
        mode: ``dual`` or ``static``.
        folder_name: Name of the checkpoint's folder.
    """
    numbers = {"original": extension.rope.original_length, "length": extension.length}
    head = [f"# Serving {folder_name}", "", SETS[mode].format(**numbers), ""]
    check = f"longrope check {shlex.quote(folder_name)} --engine all"
    head += [f"Ask again for other lengths and launches: `{check} --max-length N --lengths A,B`.", ""]
    return "\n".join(head + [line for engine in ENGINES for line in _section(engine, config, extension, folder_name)])


def launch_lines(config: Mapping[str, Any], extension: Extension, folder: str) -> list[str]:
    """Return the shell command of every engine that computes with a checkpoint's factors and has such a command."""
    engines = [name for name, engine in ENGINES.items() if not engine.in_python]
    return [_launch(engine, config, extension, folder) for engine in engines if _runs(engine, config, extension)]


def _runs(engine: str, config: Mapping[str, Any], extension: Extension) -> bool:
    """Return whether an engine computes with factors at L0 and at L."""
    predictions = predict_ends(engine, config, extension)
    return all(prediction.factors in ("short", "long") for prediction in predictions)


def _launch(engine: str, config: Mapping[str, Any], extension: Extension, folder: str) -> str:
    row = ENGINES[engine]
    quote = repr if row.in_python else shlex.quote
    file = f"{folder.rstrip('/')}.gguf"
    names: dict[str, Any] = {"folder": quote(folder), "file": quote(file), "length": extension.length}
    rule, yarn = row.models.get(config["model_type"]), yarn_scaling(text_fields(config))
    if yarn is not None:
        attention = llama_cpp_attention(config["model_type"], yarn.get("attn_factor", 1.0))
        names |= {**yarn, "original": extension.rope.original_length, "attention": attention}
        template = row.launch if isinstance(rule, Rule) else row.yarn.launch or row.launch
        return template.format(**names)
    line = row.launch.format(**names)
    return f"{line} {rule.options}" if isinstance(rule, Rule) and rule.options else line


def _section(engine: str, config: Mapping[str, Any], extension: Extension, folder: str) -> list[str]:
    """Return the lines of Markdown about one engine."""
    row = ENGINES[engine]
    title = [f"## {engine} ({row.version})", ""]
    predictions = predict_ends(engine, config, extension)
    if not _runs(engine, config, extension):
        verdict = "Nobody has read it" if predictions[-1].factors == "unknown" else "Do not serve it so"
        return [*title, f"{verdict}: {predictions[-1].departures[0]}.", ""]
    code = [f"```{'python' if row.in_python else 'sh'}", _launch(engine, config, extension, folder), "```", ""]
    original = extension.rope.original_length
    text = [_factors_used(predictions, original)]
    first, short_launch = predictions[0], predict(engine, config, extension, limit=original, length=original)
    if short_launch.scaling and first.scaling and short_launch.scaling.factors != first.scaling.factors:
        text.append(f"Launched for up to {original:,} tokens, it uses the {short_launch.factors} factors.")
    yarn = yarn_scaling(text_fields(config)) is not None
    note = row.yarn.note if yarn else row.note
    if note:
        text.append(note.format(original=original, length=extension.length))
    rule = row.rule(config["model_type"], yarn=yarn)
    if isinstance(rule, Rule) and rule.slip and not yarn:
        text.append(f"Note: {rule.slip}.")
    faults = [fault for prediction in predictions for fault in (*prediction.departures, *prediction.cautions)]
    warnings = [f"- Warning: {fault}." for fault in dict.fromkeys(faults)]
    return [*title, *code, " ".join(text), "", *warnings, *([""] if warnings else [])]


def _factors_used(predictions: list[EnginePrediction], original: int) -> str:
    """Return the sentence about the set at each length, and the attention factor."""
    first, last = predictions[0], predictions[-1]
    assert last.scaling is not None
    factor = f"attention factor {last.scaling.attention_factor:.6g}"
    if first.scaling is not None and first.scaling.factors == last.scaling.factors:
        return f"It uses the {last.factors} factors at every length ({factor})."
    return f"It uses the short factors up to {original:,} tokens and the long ones beyond ({factor})."
