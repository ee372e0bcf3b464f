from __future__ import annotations

import math

import families
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from transformers import PreTrainedModel

from longrope.errors import LongRopeError
from longrope.evaluation.losses import losses_by_length, model_losses
from longrope.evaluation.perplexity import perplexity, perplexity_of_losses
from longrope.longcontext.token_losses import token_losses
from longrope.models.patch import patch
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling
from longrope.schemes import scheme

LOSSES = arrays(np.float32, (4, 9), elements=st.floats(0, 12, width=32))
L0, LENGTHS = families.L0, [16, 64, 65, 128]


def test_by_hand() -> None:
    losses = np.log(np.array([[2.0, 8.0, 4.0], [4.0, 4.0, 32.0]]))
    assert perplexity_of_losses(losses, 2).perplexity == pytest.approx(math.sqrt(2 * 4))
    found = perplexity_of_losses(losses, 4)
    assert found.length == 4
    assert found.perplexity == pytest.approx((2 * 8 * 4 * 4 * 4 * 32) ** (1 / 6))
    assert found.losses == pytest.approx((math.log(4), math.log(8)))
    # the mean of two has the standard error |a - b| / 2, and exp stretches it by the perplexity
    assert found.standard_error == pytest.approx(found.perplexity * math.log(2) / 2)


@given(LOSSES, st.integers(2, 10))
def test_token_weighted_over_the_prefix(losses: np.ndarray, length: int) -> None:
    found = perplexity_of_losses(losses, length)
    prefix = losses[:, : length - 1].astype(np.float64)
    assert found.perplexity == pytest.approx(np.exp(prefix.mean()), rel=1e-9)
    error = prefix.mean(axis=1).std(ddof=1) / 2 * found.perplexity
    assert found.standard_error == pytest.approx(error, rel=1e-9, abs=1e-9)
    assert found.losses == pytest.approx(tuple(prefix.mean(axis=1)))


@given(LOSSES, st.permutations(range(4)))
def test_the_order_of_documents_does_not_matter(losses: np.ndarray, order: list[int]) -> None:
    one, two = perplexity_of_losses(losses, 10), perplexity_of_losses(losses[order], 10)
    assert (one.perplexity, one.standard_error) == pytest.approx((two.perplexity, two.standard_error))


def test_one_document_has_no_standard_error() -> None:
    assert np.isnan(perplexity_of_losses(np.ones((1, 5), dtype=np.float32), 6).standard_error)


@pytest.fixture(scope="module")
def rope(llama: PreTrainedModel) -> Rope:
    return Rope.of(llama)


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    return families.tokens(3, 150).numpy()


@pytest.mark.parametrize("name", [None, "pi", "yarn"])
def test_static_factors_take_one_forward_for_all_lengths(
    llama: PreTrainedModel, rope: Rope, tokens: np.ndarray, name: str | None
) -> None:
    scaling = None if name is None else scheme(name, rope, 128)
    shapes: list[tuple[int, ...]] = []
    with llama.model.layers[0].register_forward_hook(lambda *run: shapes.append(tuple(run[1][0].shape[:2]))):
        results = perplexity(llama, tokens, LENGTHS, scaling=scaling, batch=3)
    assert [shape for shape in shapes if shape[0] == 3] == [(3, 128)]  # the guard's prompts have a single row
    for result, length in zip(results, LENGTHS, strict=True):
        alone = perplexity_of_losses(model_losses(llama, scaling, tokens[:, :length]), length)
        assert result.length == length
        assert result.perplexity == pytest.approx(alone.perplexity, rel=1e-5)
        assert result.losses == pytest.approx(alone.losses, rel=1e-5)


def test_schemes_differ(llama: PreTrainedModel, rope: Rope, tokens: np.ndarray) -> None:
    pi, yarn = (perplexity(llama, tokens, [128], scaling=scheme(name, rope, 128))[0] for name in ("pi", "yarn"))
    assert pi.perplexity != pytest.approx(yarn.perplexity, rel=1e-3)


def test_without_a_scaling_the_model_is_unpatched(llama: PreTrainedModel, tokens: np.ndarray) -> None:
    assert perplexity(llama, tokens, lengths=[150]) == [perplexity_of_losses(token_losses(llama, tokens), 150)]


@pytest.mark.parametrize("short", [1.0, 1.3])
def test_an_extension_uses_its_short_factors_up_to_l0(
    llama: PreTrainedModel, rope: Rope, tokens: np.ndarray, short: float
) -> None:
    sets = Scaling([short] * (rope.dim // 2)), scheme("ntk", rope, 128)
    extension = Extension(rope=rope, short=sets[0], long=sets[1], length=128)
    scalings = {"ours": extension, "short": sets[0], "long": sets[1], "none": None}
    values = {
        name: [result.perplexity for result in perplexity(llama, tokens, LENGTHS, scaling=scaling)]
        for name, scaling in scalings.items()
    }
    assert values["ours"][:2] == pytest.approx(values["short"][:2], rel=1e-6)
    assert values["ours"][2:] == pytest.approx(values["long"][2:], rel=1e-6)
    assert values["ours"][1] != pytest.approx(values["long"][1], rel=1e-4)
    assert (values["ours"][:2] == pytest.approx(values["none"][:2], rel=1e-6)) == (short == 1.0)


def test_an_extension_at_short_lengths_only(llama: PreTrainedModel, rope: Rope, tokens: np.ndarray) -> None:
    extension = Extension.of(rope, scheme("ntk", rope, 128))
    ours, none = (perplexity(llama, tokens, [16, L0], scaling=scaling) for scaling in (extension, None))
    assert [result.perplexity for result in ours] == pytest.approx([result.perplexity for result in none])


@pytest.mark.parametrize(("lengths", "passes"), [([96, 128], [128]), ([16, 64], [64]), ([16, 128], [16, 128])])
def test_an_extension_takes_no_pass_in_vain(
    llama: PreTrainedModel, rope: Rope, tokens: np.ndarray, lengths: list[int], passes: list[int]
) -> None:
    shapes: list[tuple[int, ...]] = []
    with llama.model.layers[0].register_forward_hook(lambda *run: shapes.append(tuple(run[1][0].shape[:2]))):
        perplexity(llama, tokens, lengths, scaling=Extension.of(rope, scheme("ntk", rope, 128)), batch=3)
    assert sorted(length for rows, length in shapes if rows == 3) == passes


def test_a_model_with_two_sets_of_its_own(rope: Rope, tokens: np.ndarray) -> None:
    """An exported checkpoint, as it is, changes its factors with the length: the result at L0 must hold at L0."""
    ntk = list(scheme("ntk", rope, 128).factors)
    sets = {"short_factor": [1.0] * len(ntk), "long_factor": ntk, "factor": 2.0, "attention_factor": 1.0}
    parameters = {"rope_type": "longrope", "rope_theta": rope.base, "original_max_position_embeddings": L0, **sets}
    exported = families.build("llama", max_position_embeddings=128, rope_parameters=parameters)
    for result in perplexity(exported, tokens, [L0, 128]):
        alone = perplexity_of_losses(token_losses(exported, tokens[:, : result.length]), result.length)
        assert result.perplexity == pytest.approx(alone.perplexity, rel=1e-5)


def test_a_dynamic_scaling_has_the_factors_of_each_length(tokens: np.ndarray) -> None:
    """As transformers computes each length by itself: the factors grow with it, and no pass leaves them grown."""
    dynamic = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    lengths = [L0 // 2, L0, 96, 128]
    alone = {}
    for length in lengths:
        fresh = families.build("llama", max_position_embeddings=L0, rope_parameters=dynamic)
        with torch.no_grad():
            rows = torch.from_numpy(tokens[:, :length])
            alone[length] = float(fresh(rows, labels=rows).loss)
    model = families.build("llama", max_position_embeddings=L0, rope_parameters=dynamic)
    for order in (lengths, lengths[::-1], lengths):
        found = {result.length: math.log(result.perplexity) for result in perplexity(model, tokens, order)}
        assert found == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("batch", [1, 2])
def test_progress_counts_the_documents_of_the_longest_pass(
    llama: PreTrainedModel, rope: Rope, tokens: np.ndarray, batch: int
) -> None:
    counts: list[int] = []
    extension = Extension.of(rope, scheme("pi", rope, 128))
    perplexity(llama, tokens, [64, 128], scaling=extension, batch=batch, on_progress=counts.append)
    assert counts == ([1, 2, 3] if batch == 1 else [2, 3])


def test_factors_of_another_model_are_refused_and_nothing_stays(llama: PreTrainedModel, tokens: np.ndarray) -> None:
    rotary = llama.model.rotary_emb
    with pytest.raises(LongRopeError, match="3 "):
        perplexity(llama, tokens, [16], scaling=Scaling([1, 2, 3]))
    assert llama.model.rotary_emb is rotary


def test_lists_tensors_arrays_and_ragged_sequences_are_alike(llama: PreTrainedModel, tokens: np.ndarray) -> None:
    expected = perplexity(llama, tokens, lengths=[16, 64])
    ragged = [row[: 64 + 10 * index].tolist() for index, row in enumerate(tokens)]
    for sequences in (tokens.tolist(), torch.from_numpy(tokens), tokens.astype(np.int32), list(tokens), ragged):
        assert perplexity(llama, sequences, lengths=[16, 64]) == expected
    assert perplexity(llama, list(torch.from_numpy(tokens).int()), lengths=[16, 64]) == expected


def test_a_length_that_the_tokens_do_not_have_is_refused(llama: PreTrainedModel) -> None:
    """100 tokens once gave a result labelled 4,096."""
    sequences = families.tokens(2, 100).tolist()
    with pytest.raises(LongRopeError, match=r"lengths = \[4096\]: sequences\[0\] has 100 tokens, fewer than 4096"):
        perplexity(llama, sequences, lengths=[4096])
    with pytest.raises(LongRopeError, match=r"sequences\[1\] has 100 tokens, fewer than 128"):
        perplexity(llama, [families.tokens(1, 128)[0].tolist(), sequences[0]], lengths=[64, 128])
    with pytest.raises(LongRopeError, match="a document has 100 tokens, fewer than 4096"):
        losses_by_length(llama, None, np.array(sequences), [4096])
    with pytest.raises(LongRopeError, match="a document has 100 tokens, fewer than 4096"):
        perplexity_of_losses(np.ones((2, 99)), 4096)
    for lengths in ([], [1, 64]):
        with pytest.raises(LongRopeError, match="a loss needs 2 tokens"):
            perplexity(llama, sequences, lengths=lengths)


def test_model_losses_patch_and_undo(llama: PreTrainedModel, rope: Rope, tokens: np.ndarray) -> None:
    factors, before = scheme("pi", rope, 128), token_losses(llama, tokens)
    inside = model_losses(llama, factors, tokens)
    with patch(llama, factors):
        assert np.array_equal(token_losses(llama, tokens), inside)
    assert np.array_equal(token_losses(llama, tokens), before)
    assert not np.array_equal(inside, before)
