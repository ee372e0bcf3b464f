from __future__ import annotations

import struct
from pathlib import Path

import families
import numpy as np
import pytest
import torch
from gguf import GGUFReader
from gguf_files import TOKENIZER, model, plain
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from longrope.errors import LongRopeError
from longrope.export.gguf.convert import export_gguf
from longrope.export.gguf.copy import extend_gguf
from longrope.export.huggingface import export_huggingface
from longrope.models.load import load
from longrope.models.patch import install_factors, patch
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling
from longrope.schemes import scheme

LENGTH = 512


def extension(model: PreTrainedModel, **fields: object) -> Extension:
    rope = Rope.of(model)
    long = Scaling(scheme("pi", rope, LENGTH).factors, **{"attention_factor": 1.25, "length": LENGTH, **fields})
    short = Scaling([1 + i / 10 for i in range(rope.dim // 2)], attention_factor=1.25)
    return Extension(rope, short, long, LENGTH)


def keys(path: Path) -> dict[str, object]:
    return {name: field.contents() for name, field in GGUFReader(path).fields.items() if not name.startswith("GGUF.")}


def tensors(path: Path) -> dict[str, tuple[int, bytes]]:
    return {one.name: (int(one.tensor_type), one.data.tobytes()) for one in GGUFReader(path).tensors}


@pytest.mark.parametrize("mode", ["dual", "static"])
def test_keys_and_tensors_of_the_factors(mode: str, tmp_path: Path) -> None:
    made = model()
    path = tmp_path / "new" / "folder" / "x.gguf"
    held = export_gguf(made, TOKENIZER, extension(made), path, mode=mode)
    found, data = keys(path), tensors(path)
    scaling = {name: value for name, value in found.items() if "scaling" in name}
    assert scaling == {
        "llama.rope.scaling.type": "longrope",
        "llama.rope.scaling.original_context_length": 64,
        "llama.rope.scaling.attn_factor": 1.25,
    }
    assert (found["llama.context_length"], found["llama.rope.freq_base"]) == (LENGTH, 10000.0)
    for name, scaling in (("long", held.long), ("short", held.short)):
        kind, raw = data[f"rope_factors_{name}.weight"]
        assert (kind, np.frombuffer(raw, np.float32).tolist()) == (0, np.float32(scaling.factors).tolist())
    assert held.short == (held.long if mode == "static" else extension(made).short)
    assert found["tokenizer.ggml.tokens"] == TOKENIZER.convert_ids_to_tokens(range(len(TOKENIZER)))


def test_matrices_have_the_outtype_and_vectors_float32(tmp_path: Path) -> None:
    made = model().bfloat16()
    for outtype, kind in (("auto", 30), ("f32", 0), ("f16", 1), ("q8_0", 8)):
        export_gguf(made, TOKENIZER, extension(made), tmp_path / "x.gguf", outtype=outtype, overwrite=True)
        kinds = {name: found[0] for name, found in tensors(tmp_path / "x.gguf").items()}
        assert {kinds["token_embd.weight"], kinds["blk.0.ffn_down.weight"], kinds["output.weight"]} == {kind}
        assert {kinds["output_norm.weight"], kinds["blk.1.attn_norm.weight"]} == {0}


def test_rows_that_a_block_does_not_divide_stay_f16(tmp_path: Path) -> None:
    made = model(intermediate_size=100)
    export_gguf(made, TOKENIZER, extension(made), tmp_path / "x.gguf", outtype="q8_0")
    kinds = {name: found[0] for name, found in tensors(tmp_path / "x.gguf").items()}
    assert (kinds["blk.0.ffn_down.weight"], kinds["blk.0.ffn_up.weight"]) == (1, 8)


def test_a_checkpoint_of_ours_gives_the_same_file_and_another_scaling_is_not_stacked(tmp_path: Path) -> None:
    made = model()
    held = extension(made, attention_factor=1.25)
    export_gguf(made, TOKENIZER, held, tmp_path / "plain.gguf", mode="dual")
    export_huggingface(made, TOKENIZER, held, tmp_path / "folder", mode="dual")
    exported, tokenizer = load(str(tmp_path / "folder"))
    export_gguf(exported, tokenizer, held, tmp_path / "again.gguf", mode="dual")
    assert tensors(tmp_path / "again.gguf") == tensors(tmp_path / "plain.gguf")
    assert keys(tmp_path / "again.gguf") == keys(tmp_path / "plain.gguf")
    other = Extension(held.rope, held.short, held.long.times([2.0] * 8), LENGTH)
    refused(tmp_path, "its checkpoint carries a rope scaling", exported, tokenizer, other)


def test_a_copy_keeps_every_bit_but_the_factors(tmp_path: Path) -> None:
    source = plain(tmp_path / "source.gguf")
    before, made = source.read_bytes(), extension(model())
    held = extend_gguf(source, made, tmp_path / "x.gguf", mode="dual")
    assert source.read_bytes() == before
    assert held == made
    old, new = tensors(source), tensors(tmp_path / "x.gguf")
    assert {name: new[name] for name in old} == old
    assert set(new) - set(old) == {"rope_factors_long.weight", "rope_factors_short.weight"}
    said, had = keys(tmp_path / "x.gguf"), keys(source)
    added = {name: value for name, value in said.items() if had.get(name) != value}
    assert added == {
        "llama.context_length": LENGTH,
        "llama.rope.scaling.type": "longrope",
        "llama.rope.scaling.original_context_length": 64,
        "llama.rope.scaling.attn_factor": 1.25,
    }
    assert had.keys() <= said.keys()


def test_a_copy_leaves_out_empty_arrays(tmp_path: Path) -> None:
    """They are legal, and gguf-py reads them but refuses to write them."""
    source = plain(tmp_path / "source.gguf")
    data, name = source.read_bytes(), b"my.empty"
    count = struct.unpack_from("<Q", data, 16)[0]
    empty = struct.pack("<Q8sIIQ", len(name), name, 9, 8, 0)  # 32 bytes, which keeps the alignment of the tensors
    source.write_bytes(data[:16] + struct.pack("<Q", count + 1) + empty + data[24:])
    assert "my.empty" in GGUFReader(source).fields
    extend_gguf(source, extension(model()), tmp_path / "x.gguf")
    assert keys(source).keys() - keys(tmp_path / "x.gguf").keys() == {"my.empty"}


def test_a_copy_gives_what_a_conversion_gives(tmp_path: Path) -> None:
    source, made = plain(tmp_path / "source.gguf"), model()
    extend_gguf(source, extension(made), tmp_path / "copied.gguf")
    export_gguf(made, TOKENIZER, extension(made), tmp_path / "converted.gguf", outtype="q8_0")
    assert keys(tmp_path / "copied.gguf") == keys(tmp_path / "converted.gguf")
    assert tensors(tmp_path / "copied.gguf") == tensors(tmp_path / "converted.gguf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_freqs.weight": np.ones(8, np.float32)}, "because its checkpoint carries a rope scaling"),
        ({"llama.rope.scaling.factor": 4.0}, "because its checkpoint carries a rope scaling"),
        ({"llama.rope.scaling.type": "dynamic", "llama.rope.scaling.factor": 4.0}, "'dynamic' .*not supported"),
        ({"llama.rope.freq_base": 5e5}, "the model has .*500000"),
        ({"llama.context_length": 128}, "the model has .*128"),
        ({"llama.context_length": None}, "context_length is missing"),
    ],
)
def test_a_source_that_does_not_fit_is_refused(change: dict, message: str, tmp_path: Path) -> None:
    source = plain(tmp_path / "source.gguf", change)
    with pytest.raises(LongRopeError, match=message):
        extend_gguf(source, extension(model()), tmp_path / "x.gguf")
    assert not list(tmp_path.glob("*x.gguf*"))


SCALINGS: dict[str, tuple[dict[str, object], int]] = {
    "frequencies of Llama 3": ({"rope_freqs.weight": np.linspace(1, 8, 8, dtype=np.float32)}, 64),
    "yarn": ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}, 256),
    "linear": ({"llama.rope.scale_linear": 4.0}, 256),
    "an attention factor": ({"llama.rope.scaling.attn_factor": 1.5}, 64),
    "two sets": (
        {
            "llama.context_length": 256,
            "llama.rope.scaling.original_context_length": 64,
            "rope_factors_long.weight": np.linspace(1, 4, 8, dtype=np.float32),
            "rope_factors_short.weight": np.linspace(1, 1.5, 8, dtype=np.float32),
        },
        256,
    ),
}


@pytest.mark.parametrize(
    ("name", "mode"), [*((name, "static") for name in SCALINGS), ("yarn", "dual"), ("two sets", "dual")]
)
def test_a_source_with_a_scaling_gets_the_products_of_both_factors(name: str, mode: str, tmp_path: Path) -> None:
    change, original = SCALINGS[name]
    source = plain(tmp_path / "source.gguf", change)
    model, _ = load(str(source))
    rope = Rope.of(model)
    assert rope.original_length == original
    added = Extension.of(rope, Scaling(scheme("ntk", rope, LENGTH).factors, length=LENGTH))
    extend_gguf(source, added, tmp_path / "x.gguf", mode=mode)
    longer, _ = load(str(tmp_path / "x.gguf"))
    assert not [one for one in tensors(tmp_path / "x.gguf") if one == "rope_freqs.weight"]
    for length in (40, 64, 65, 200, 257, 400):
        ids = families.tokens(1, length)
        border = 64 if name == "two sets" else original  # a file holds two sets, so beyond 64 tokens it has the longest
        with patch(model, added if mode == "dual" and length <= border else added.long):
            expected = families.logits(model, ids)
        torch.testing.assert_close(families.logits(longer, ids), expected, rtol=0, atol=2e-3)


def test_a_gguf_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = plain(tmp_path / "source.gguf").read_bytes()
    for kept in (0, 3, 4, 20, 100, 5_000, 40_000, len(whole) // 2, len(whole) - 1000):
        (tmp_path / "cut.gguf").write_bytes(whole[:kept])
        with pytest.raises(LongRopeError, match=r"cut.gguf is not a complete GGUF file"):
            extend_gguf(tmp_path / "cut.gguf", extension(model()), tmp_path / "x.gguf")
    with pytest.raises(LongRopeError, match="cannot read"):
        extend_gguf(tmp_path / "none.gguf", extension(model()), tmp_path / "x.gguf")
    assert not list(tmp_path.glob("*x.gguf*"))


def refused(folder: Path, message: str, *given: object, **options: object) -> None:
    before = sorted(folder.iterdir())
    with pytest.raises(LongRopeError, match=message):
        export_gguf(*given, folder / "x.gguf", **options)
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gemma2", "granite", "olmo2", "gpt_neox"])
def test_architectures_that_llama_cpp_would_run_wrong_are_refused(family: str, tmp_path: Path) -> None:
    made = families.build(family)
    refused(tmp_path, f"'{family}'.*only llama and phi3", made, TOKENIZER, extension(made))


def test_what_a_gguf_cannot_hold_is_refused(tmp_path: Path) -> None:
    made = model()
    refused(tmp_path, "start_tokens = 4", made, TOKENIZER, extension(made, start_tokens=4))
    refused(tmp_path, "attention_factor", made, TOKENIZER, extension(made, attention_factor=2.0), mode="dual")
    refused(tmp_path, r"outtype = 'q4_k_m'.*llama-quantize", made, TOKENIZER, extension(made), outtype="q4_k_m")
    refused(tmp_path, "sliding_window = 16", families.build("mistral", sliding_window=16), TOKENIZER, extension(made))
    refused(tmp_path, "hidden_act = 'gelu'", model(hidden_act="gelu"), TOKENIZER, extension(made))
    mixtral = families.build("mixtral")
    refused(tmp_path, "'mixtral'.*convert_hf_to_gguf", mixtral, TOKENIZER, extension(mixtral))
    other = model(rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    refused(tmp_path, "the model has .*500000", other, TOKENIZER, extension(made))
    made.config.quantization_config = {"quant_method": "awq"}
    refused(tmp_path, r"quant_method = 'awq'", made, TOKENIZER, extension(made))


def test_a_vocabulary_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    made = families.build("llama")
    refused(tmp_path, "a token 2047, but the model has vocab_size = 128", made, TOKENIZER, extension(made))


def bpe(pre_tokenizer: object, **options: object) -> PreTrainedTokenizerBase:
    vocabulary = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(vocabulary, [], **options))
    made.pre_tokenizer = pre_tokenizer
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="!")


def test_other_tokenizers_are_refused(tmp_path: Path) -> None:
    made = model()
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    spaced, words = pre_tokenizers.ByteLevel(add_prefix_space=True), pre_tokenizers.WhitespaceSplit()
    for one in (families.tokenizer(), bpe(spaced), bpe(words), bpe(level, ignore_merges=True)):
        refused(tmp_path, r"tokenizer: .*convert_hf_to_gguf", made, one, extension(made))
    lowered = bpe(level)
    lowered.backend_tokenizer.normalizer = normalizers.Lowercase()
    refused(tmp_path, r"tokenizer: .*convert_hf_to_gguf", made, lowered, extension(made))
    export_gguf(made, bpe(level), extension(made), tmp_path / "x.gguf")
    assert keys(tmp_path / "x.gguf")["tokenizer.ggml.pre"] == "gpt-2"


@pytest.mark.parametrize("room", [20_000, 200_000])
def test_a_disk_that_fills_up_leaves_nothing(room: int, at_most, tmp_path: Path) -> None:
    made = model()
    (tmp_path / "x.gguf").write_bytes(b"mine")
    with at_most(room):
        refused(tmp_path, "cannot write", made, TOKENIZER, extension(made), overwrite=True)
    assert (tmp_path / "x.gguf").read_bytes() == b"mine"


def test_a_head_of_its_own_is_written_whatever_the_config_says_of_ties(tmp_path: Path) -> None:
    """As after a training of the head alone; llama.cpp computed with the embedding in its place."""
    made = model(tie_word_embeddings=True)
    export_gguf(made, TOKENIZER, extension(made), tmp_path / "tied.gguf")
    assert "output.weight" not in tensors(tmp_path / "tied.gguf")
    made.lm_head.weight = torch.nn.Parameter(made.lm_head.weight.detach() * 2)
    export_gguf(made, TOKENIZER, extension(made), tmp_path / "untied.gguf")
    assert tensors(tmp_path / "untied.gguf")["output.weight"][1] == made.lm_head.weight.detach().numpy().tobytes()


def test_weights_in_a_patched_model_are_the_same(tmp_path: Path) -> None:
    made = model()
    export_gguf(made, TOKENIZER, extension(made), tmp_path / "a.gguf")
    install_factors(made, extension(made))
    export_gguf(made, TOKENIZER, extension(made), tmp_path / "b.gguf")
    assert tensors(tmp_path / "a.gguf") == tensors(tmp_path / "b.gguf")
