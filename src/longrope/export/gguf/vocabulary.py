"""A tokenizer as the keys that llama.cpp reads."""

from __future__ import annotations

import json
import logging
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from longrope.errors import LongRopeError
from longrope.export.tokenizer import save_tokenizer
from longrope.storage.atomic import write_json

if TYPE_CHECKING:
    from gguf import GGUFWriter

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+|"
# how text is split before byte pairs are merged, and whether whole words skip merging -> llama.cpp's name for it
BYTE_LEVEL = {
    ("", False): "gpt-2",
    ("digits", False): "smollm",
    (CONTRACTIONS + WORD + r"\p{N}{1,3}" + REST, True): "llama-bpe",
    (CONTRACTIONS + WORD + r"\p{N}" + REST, False): "qwen2",
}


def add_vocabulary(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, config: dict[str, Any]) -> None:
    """Add tokens, merges or scores, special tokens and the chat template.

    Args:
        writer: Writer of the GGUF file.
        tokenizer: Byte-level BPE, or BPE with byte fallback as made from SentencePiece.
        config: Config of the model, for the number of tokens and the ids of special ones.

    Raises:
        LongRopeError: llama.cpp splits text in another way than this tokenizer.
    """
    from gguf import SpecialVocab

    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(tokenizer, Path(folder))
        write_json(Path(folder) / "config.json", {k: v for k, v in config.items() if k.endswith("_token_id")})
        try:
            definition = json.loads((Path(folder) / "tokenizer.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise LongRopeError(
                "tokenizer: it has no tokenizer.json, which GGUF needs. Load the model with a fast tokenizer."
            ) from None
        logging.getLogger("gguf.vocab").setLevel(logging.ERROR)
        from_sentencepiece = bool(definition["model"].get("byte_fallback"))
        special = SpecialVocab(folder, load_merges=not from_sentencepiece, n_vocab=config["vocab_size"])
    if from_sentencepiece:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_add_space_prefix(_adds_space(definition))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_splitter_name(definition))
    tokens, types = _tokens(tokenizer, config["vocab_size"])
    writer.add_token_list(tokens)
    if from_sentencepiece:
        writer.add_token_scores(_scores(definition["model"], tokens))
    writer.add_token_types(types)
    special.add_to_gguf(writer, quiet=True)


def _tokens(tokenizer: PreTrainedTokenizerBase, size: int) -> tuple[list[str], list[int]]:
    """Return every token by its id, and its type in GGUF."""
    from gguf import TokenType

    names: dict[int, str] = {i: token for token, i in tokenizer.get_vocab().items()}
    added: dict[int, Any] = tokenizer.added_tokens_decoder
    if max(names) >= size:
        raise LongRopeError(
            f"tokenizer: it has a token {max(names)}, but the model has vocab_size = {size}. "
            "Give the tokenizer of this model."
        )

    def token_type(i: int) -> int:
        if i not in names:
            return TokenType.UNUSED
        if i in added:
            return TokenType.CONTROL if added[i].special else TokenType.USER_DEFINED
        return TokenType.BYTE if re.fullmatch(r"<0x[0-9A-F]{2}>", names[i]) else TokenType.NORMAL

    return [names.get(i, f"[PAD{i}]") for i in range(size)], [token_type(i) for i in range(size)]


def _scores(model: dict[str, Any], tokens: list[str]) -> list[float]:
    """Return the score of each token: SentencePiece merges the highest score where BPE merges the first pair."""
    rank: dict[str, int] = {}
    for i, merge in enumerate(model["merges"]):
        rank.setdefault("".join(merge if isinstance(merge, list) else merge.split(" ")), i)
    return [-float(rank.get(token, len(rank))) for token in tokens]


def _splitter_name(definition: dict[str, Any]) -> str:
    """Return llama.cpp's name for how a byte-level tokenizer splits text.

    Raises:
        LongRopeError: llama.cpp has no name for it.
    """
    model, splitters = definition["model"], _steps(definition.get("pre_tokenizer"), "pretokenizers")
    normalizers = {step["type"] for step in _steps(definition.get("normalizer"), "normalizers")}
    last = splitters[-1] if splitters else {}
    byte_level = last.get("type") == "ByteLevel" and not last["add_prefix_space"]
    if model["type"] == "BPE" and normalizers <= {"NFC"} and byte_level:
        first = [_split_pattern(step) for step in splitters[:-1]]
        known = len(first) < 2 and bool(last["use_regex"]) == (first in ([], ["digits"]))
        name = BYTE_LEVEL.get(("".join(first), bool(model.get("ignore_merges")))) if known else None
        if name:
            return name
    types = ", ".join(str(step["type"]) for step in splitters) or "nothing"
    raise LongRopeError(
        f"tokenizer: {model['type']} split by {types} is not one that longrope writes to GGUF "
        f"({', '.join(BYTE_LEVEL.values())}, SentencePiece). Convert the model with llama.cpp's convert_hf_to_gguf.py, "
        "then export that .gguf file."
    )


def _split_pattern(step: dict[str, Any]) -> str:
    """Return the pattern by which a step splits text: ``digits``, a regular expression, or ``other``."""
    if step["type"] == "Digits" and step["individual_digits"]:
        return "digits"
    if step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
        return str(step["pattern"].get("Regex"))
    return "other"


def _adds_space(definition: dict[str, Any]) -> bool:
    """Return whether a SentencePiece tokenizer puts a space before the text."""
    normalizers = _steps(definition.get("normalizer"), "normalizers")
    metaspaces = [
        step for step in _steps(definition.get("pre_tokenizer"), "pretokenizers") if step["type"] == "Metaspace"
    ]
    if metaspaces:
        return any(step.get("prepend_scheme") != "never" for step in metaspaces)
    return any(step["type"] == "Prepend" for step in normalizers)


def _steps(definition: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """Return the members of a sequence of steps, or the only step in a list."""
    return [] if definition is None else definition.get(key, [definition])
