"""The model card of an exported checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from longrope.export.hf_config import has_own_attention
from longrope.scaling import Extension

OFF_FORMULA = "engines that compute the attention factor from L/L0 will not use the one chosen here."
SETS = {
    "dual": "Two sets of factors: the short ones up to {original:,} tokens, the long ones beyond. Engines choose "
    "between them differently (transformers by the longest row of a batch, vLLM once by `max_model_len`): SERVING.md "
    "says how; export with `--mode static` for one set everywhere.",
    "static": "One set of factors at every length, so that no engine can take the wrong one: see SERVING.md.",
}


def model_card(extension: Extension, mode: str, name: str, config: Mapping[str, Any]) -> str:
    """Return the card in Markdown: what the checkpoint is, its factors, and where they come from.

    Args:
        extension: Factors of the checkpoint.
        mode: ``dual`` or ``static``.
        name: Name of the model.
        config: The checkpoint's ``config.json``.
    """
    long, rope, name = extension.long, extension.rope, _escape(name)
    pairs = enumerate(zip(rope.wavelengths, extension.short.factors, long.factors, strict=True))
    table = [f"| {pair} | {turn:,.1f} | {short:.4g} | {factor:.4g} |" for pair, (turn, short, factor) in pairs]
    provenance = [f"- {_escape(key)}: {_escape(value)}" for key, value in long.provenance.items()]
    return "\n".join(
        [
            "---",
            "tags: [longrope, long-context]",
            "library_name: transformers",
            "---",
            f"# {name}, extended from {rope.original_length:,} to {extension.length:,} tokens",
            "",
            f"The weights of {name} with LongRoPE factors (scheme: {_escape(long.scheme)}, s = {extension.scale:g}, "
            f"attention factor {long.attention_factor:g}). {SETS[mode].format(original=rope.original_length)}",
            "",
            *([f"Note: {OFF_FORMULA}", ""] if has_own_attention(config) else []),
            *(["How the factors were found:", "", *provenance, ""] if provenance else []),
            "| pair | wavelength (tokens) | short factor | long factor |",
            "|---|---|---|---|",
            *table,
            "",
        ]
    )


def _escape(text: object) -> str:
    """Return text in one line, without characters that Markdown or HTML would interpret; word_underscores stay."""
    return re.sub(r"([\\`*\[\]<>|&!#~]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(str(text).split()))
