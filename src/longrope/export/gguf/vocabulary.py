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
# how text is cut before byte pairs are merged, and whether whole words skip merging -> llama.cpp's name for it
BYTE_LEVEL = {
    ("", False): "gpt-2",
    ("digits", False): "smollm",
    (CONTRACTIONS + WORD + r"\p{N}{1,3}" + REST, True): "llama-bpe",
    (CONTRACTIONS + WORD + r"\p{N}" + REST, False): "qwen2",
}


def add_vocabulary(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, config: dict[str, Any]) -> None:
    """Add tokens, merges or scores, special tokens and the chat template.

    Args:
        writer: of the GGUF file.
        tokenizer: byte-level BPE, or BPE with byte fallback as made from SentencePiece.
        config: of the model, for the number of tokens and the ids of special ones.

    Raises:
        LongRopeError: if llama.cpp cuts text in another way than this tokenizer.
    """
    from gguf import SpecialVocab

    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(tokenizer, Path(folder))
        write_json(Path(folder) / "config.json", {k: v for k, v in config.items() if k.endswith("_token_id")})
        try:
            made = json.loads((Path(folder) / "tokenizer.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise LongRopeError("tokenizer: it has no tokenizer.json (a fast tokenizer), which GGUF needs") from None
        logging.getLogger("gguf.vocab").setLevel(logging.ERROR)
        pieces = bool(made["model"].get("byte_fallback"))
        special = SpecialVocab(folder, load_merges=not pieces, n_vocab=config["vocab_size"])
    if pieces:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_add_space_prefix(_adds_space(made))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_pre_tokenizer(made))
    tokens, types = _tokens(tokenizer, config["vocab_size"])
    writer.add_token_list(tokens)
    if pieces:
        writer.add_token_scores(_scores(made["model"], tokens))
    writer.add_token_types(types)
    special.add_to_gguf(writer, quiet=True)


def _tokens(tokenizer: PreTrainedTokenizerBase, size: int) -> tuple[list[str], list[int]]:
    """Every token by its id, and what kind of token it is."""
    from gguf import TokenType

    names: dict[int, str] = {i: token for token, i in tokenizer.get_vocab().items()}
    added: dict[int, Any] = tokenizer.added_tokens_decoder
    if max(names) >= size:
        raise LongRopeError(f"tokenizer: it has a token {max(names)}, but the model has vocab_size = {size}")

    def kind(i: int) -> int:
        if i not in names:
            return TokenType.UNUSED
        if i in added:
            return TokenType.CONTROL if added[i].special else TokenType.USER_DEFINED
        return TokenType.BYTE if re.fullmatch(r"<0x[0-9A-F]{2}>", names[i]) else TokenType.NORMAL

    return [names.get(i, f"[PAD{i}]") for i in range(size)], [kind(i) for i in range(size)]


def _scores(model: dict[str, Any], tokens: list[str]) -> list[float]:
    """SentencePiece merges what scores highest where BPE merges what comes first."""
    rank: dict[str, int] = {}
    for i, merge in enumerate(model["merges"]):
        rank.setdefault("".join(merge if isinstance(merge, list) else merge.split(" ")), i)
    return [-float(rank.get(token, len(rank))) for token in tokens]


def _pre_tokenizer(made: dict[str, Any]) -> str:
    """llama.cpp's name for how a byte-level tokenizer cuts text."""
    model, cuts = made["model"], _parts(made.get("pre_tokenizer"), "pretokenizers")
    plain = model["type"] == "BPE" and {one["type"] for one in _parts(made.get("normalizer"), "normalizers")} <= {"NFC"}
    last = cuts[-1] if cuts else {}
    if plain and last.get("type") == "ByteLevel" and not last["add_prefix_space"]:
        first = [_cut(one) for one in cuts[:-1]]
        pattern = "".join(first) if len(first) < 2 and bool(last["use_regex"]) == (first in ([], ["digits"])) else None
        name = BYTE_LEVEL.get((pattern or "", bool(model.get("ignore_merges")))) if pattern is not None else None
        if name:
            return name
    raise LongRopeError(
        f"tokenizer: {model['type']} cut by {', '.join(str(one['type']) for one in cuts) or 'nothing'} is none of "
        f"those that longrope writes to GGUF ({', '.join(BYTE_LEVEL.values())}, SentencePiece); convert the model with "
        "llama.cpp's convert_hf_to_gguf.py, then export that .gguf file"
    )


def _cut(one: dict[str, Any]) -> str:
    if one["type"] == "Digits" and one["individual_digits"]:
        return "digits"
    if one["type"] == "Split" and one["behavior"] == "Isolated" and not one["invert"]:
        return str(one["pattern"].get("Regex"))
    return "other"


def _adds_space(made: dict[str, Any]) -> bool:
    normalizers, cuts = (
        _parts(made.get("normalizer"), "normalizers"),
        _parts(made.get("pre_tokenizer"), "pretokenizers"),
    )
    if any(one["type"] == "Metaspace" for one in cuts):
        return any(one.get("prepend_scheme") != "never" for one in cuts if one["type"] == "Metaspace")
    return any(one["type"] == "Prepend" for one in normalizers)


def _parts(one: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """The members of a sequence, or the one itself."""
    return [] if one is None else one.get(key, [one])
