from __future__ import annotations

from functools import partial

import all_types
import families
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from longrope.errors import LongRopeError
from longrope.longcontext import token_losses as module
from longrope.longcontext.token_losses import token_losses
from longrope.models.patch import patch
from longrope.scaling import Scaling

# final soft cap, logit scale, logits scaling; gpt_neox calls its head another name
HEADS = {"llama": {}, "gemma2": {"final_logit_softcapping": 5.0}, "cohere": {"logit_scale": 0.3}, "gpt_neox": {}}
HEADS |= {"granite": {"logits_scaling": 4.0, "embedding_multiplier": 3.0}, "mixtral": {}}


@pytest.fixture(scope="module", params=HEADS)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return families.build(request.param, **HEADS[request.param])


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    return families.tokens(5, 50).numpy()


def full(model: PreTrainedModel, tokens: np.ndarray) -> np.ndarray:
    """By the model's whole logits at once."""
    logits = families.logits(model, torch.from_numpy(tokens)).double()
    chances = logits[:, :-1].log_softmax(-1)
    return -chances.gather(-1, torch.from_numpy(tokens)[:, 1:, None])[..., 0].numpy()


@pytest.mark.parametrize("at_once", [1, 500, families.VOCABULARY * 7, 2**24])
@pytest.mark.parametrize("batch", [1, 2, 5, 9])
def test_equals_the_cross_entropy_of_full_logits(
    model: PreTrainedModel, tokens: np.ndarray, at_once: int, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", at_once)
    losses = token_losses(model, tokens, batch=batch)
    assert losses.shape == (5, 49)
    assert losses.dtype == np.float32
    np.testing.assert_allclose(losses, full(model, tokens), atol=1e-5)
    assert losses.std() > 0.1  # else the head's own scale would not show


@pytest.mark.parametrize(("name", "fields"), [("gemma2", HEADS["gemma2"]), ("cohere", HEADS["cohere"])])
def test_the_heads_own_cap_and_scale_matter(name: str, fields: dict[str, float], tokens: np.ndarray) -> None:
    plain = families.build(name, **dict.fromkeys(fields, 1.0 if name == "cohere" else None))
    assert np.abs(token_losses(families.build(name, **fields), tokens) - full(plain, tokens)).max() > 0.01


def test_two_tokens_are_the_fewest(llama: PreTrainedModel, tokens: np.ndarray) -> None:
    np.testing.assert_allclose(token_losses(llama, tokens[:, :2]), full(llama, tokens[:, :2]), atol=1e-5)


def test_float16_and_bfloat16_losses_are_float32(tokens: np.ndarray) -> None:
    model = families.build("llama").to(torch.bfloat16)
    losses = token_losses(model, tokens)
    assert losses.dtype == np.float32
    np.testing.assert_allclose(losses, full(model, tokens), atol=1e-4)


@pytest.mark.parametrize("at_once", [families.VOCABULARY * 7, 2**24])
@pytest.mark.parametrize("skip", [0, 1, 20, 48])
def test_what_is_skipped_is_0_and_the_rest_the_same(
    model: PreTrainedModel, tokens: np.ndarray, at_once: int, skip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", at_once)
    losses = token_losses(model, tokens, batch=2, skip=skip)
    assert losses.shape == (5, 49)
    assert not losses[:, :skip].any()
    np.testing.assert_allclose(losses[:, skip:], full(model, tokens)[:, skip:], atol=1e-5)


def test_the_head_does_not_run_on_what_is_skipped(model: PreTrainedModel, tokens: np.ndarray) -> None:
    positions: list[int] = []
    head = model.get_output_embeddings()
    with head.register_forward_hook(lambda *made: positions.append(made[2].shape[:-1].numel())):
        token_losses(model, tokens, batch=2, skip=40)
    assert sum(positions) == 5 * 9


@pytest.mark.parametrize("at_once", [families.VOCABULARY, families.VOCABULARY * 30])
@pytest.mark.parametrize("batch", [1, 3])
def test_no_more_logits_at_once_than_said(
    model: PreTrainedModel, tokens: np.ndarray, at_once: int, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", at_once)
    sizes: list[int] = []
    hook = model.get_output_embeddings().register_forward_hook(lambda *made: sizes.append(made[2].numel()))
    with hook:
        token_losses(model, tokens, batch=batch)
    assert max(sizes) <= max(at_once, batch * families.VOCABULARY)
    assert sum(sizes) == 5 * 49 * families.VOCABULARY


def test_the_backbone_runs_once_a_batch(llama: PreTrainedModel, tokens: np.ndarray) -> None:
    shapes: list[tuple[int, ...]] = []
    layer = llama.model.layers[0]
    token_losses(llama, tokens)  # the first call checks that this model's layers can run on chunks
    with layer.register_forward_hook(lambda *made: shapes.append(tuple(made[1][0].shape[:2]))):
        token_losses(llama, tokens, batch=2)
    assert shapes == [(2, 50), (2, 50), (1, 50)]


@pytest.mark.parametrize("fails", [False, True])
def test_the_models_forward_is_what_it_was(llama: PreTrainedModel, tokens: np.ndarray, fails: bool) -> None:
    before = families.logits(llama, torch.from_numpy(tokens))
    if fails:
        with pytest.raises(IndexError), llama.lm_head.register_forward_hook(lambda *_: [][0]):
            token_losses(llama, tokens)
    else:
        token_losses(llama, tokens)
    assert "forward" not in vars(llama.model)
    assert torch.equal(families.logits(llama, torch.from_numpy(tokens)), before)


def test_a_forward_of_the_instance_stays(llama: PreTrainedModel, tokens: np.ndarray) -> None:
    """Libraries such as accelerate put one there."""
    calls: list[int] = []
    own = llama.model.forward

    def hooked(*args: Tensor, **kwargs: Tensor) -> object:
        calls.append(1)
        return own(*args, **kwargs)

    expected = token_losses(llama, tokens)
    llama.model.forward = hooked
    try:
        assert np.array_equal(token_losses(llama, tokens), expected)
        assert llama.model.forward is hooked
        assert len(calls) == 5
    finally:
        del llama.model.forward


@pytest.mark.parametrize(("batch", "counts"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (9, [5])])
def test_done_is_told_the_finished_documents(
    llama: PreTrainedModel, tokens: np.ndarray, batch: int, counts: list[int]
) -> None:
    told: list[int] = []
    token_losses(llama, tokens, batch=batch, on_progress=told.append)
    assert told == counts


def failing(error: BaseException, *_: object) -> None:
    raise error


CPU = "[enforce fail at alloc_cpu.cpp:128] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
        torch.OutOfMemoryError(),
        MemoryError(),
        RuntimeError(CPU),
    ],
    ids=["cuda", "bare", "python", "cpu"],
)
def test_out_of_memory_says_where_and_what_to_lower(
    llama: PreTrainedModel, tokens: np.ndarray, error: Exception
) -> None:
    with llama.model.layers[1].register_forward_hook(partial(failing, error)):
        with pytest.raises(
            LongRopeError, match=r"out of memory at length 50 with batch 2 .*lower the length or the batch"
        ):
            token_losses(llama, tokens, batch=2)
        with pytest.raises(LongRopeError, match="batch 5"):
            token_losses(llama, tokens, batch=99)


def test_really_out_of_memory(llama: PreTrainedModel, tokens: np.ndarray) -> None:
    """On the CPU torch raises a RuntimeError: no machine has 2^60 bytes."""
    hook = llama.model.layers[1].register_forward_hook(lambda *_: torch.empty(2**58))
    with hook, pytest.raises(LongRopeError, match="out of memory at length 50"):
        token_losses(llama, tokens)


@pytest.mark.parametrize("text", ["shapes do not fit", "CUDA error: an illegal memory access was encountered"])
def test_other_errors_pass_through(llama: PreTrainedModel, tokens: np.ndarray, text: str) -> None:
    hook = llama.model.layers[1].register_forward_hook(partial(failing, RuntimeError(text)))
    with hook, pytest.raises(RuntimeError, match=text):
        token_losses(llama, tokens)


def test_positions_beyond_the_cut_do_not_matter(llama: PreTrainedModel, tokens: np.ndarray) -> None:
    changed = tokens.copy()
    changed[:, 30:] = 7
    before, after = token_losses(llama, tokens), token_losses(llama, changed)
    np.testing.assert_allclose(before[:, :29], after[:, :29], atol=1e-6)
    assert np.abs(before[:, 29:] - after[:, 29:]).max() > 0.1


def test_it_is_plain_torch_cross_entropy(llama: PreTrainedModel, tokens: np.ndarray) -> None:
    ids = torch.from_numpy(tokens)
    mean = cross_entropy(families.logits(llama, ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert token_losses(llama, tokens).mean() == pytest.approx(mean.item(), abs=1e-5)


RAGGED = [[5, 17, 3, 88, 2, 41, 7], [11, 12], [60, 61, 62, 63, 1]]


def test_lists_of_one_length_give_an_array(llama: PreTrainedModel) -> None:
    losses = token_losses(llama, [[5, 17, 3], [88, 2, 41]])
    assert isinstance(losses, np.ndarray)
    assert np.array_equal(losses, token_losses(llama, np.array([[5, 17, 3], [88, 2, 41]])))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8, torch.float32, torch.bfloat16])
def test_tensors_of_any_type_give_the_losses_of_an_array(
    llama: PreTrainedModel, tokens: np.ndarray, dtype: torch.dtype
) -> None:
    assert np.array_equal(token_losses(llama, torch.tensor(tokens).to(dtype)), token_losses(llama, tokens))


@pytest.mark.parametrize("dtype", [np.int32, np.uint16, np.int8, np.float64])
def test_arrays_of_any_type_give_the_losses_of_int64(llama: PreTrainedModel, tokens: np.ndarray, dtype: type) -> None:
    assert np.array_equal(token_losses(llama, tokens.astype(dtype)), token_losses(llama, tokens))


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor, partial(torch.tensor, dtype=torch.int32)])
def test_ragged_sequences_give_a_list_each_as_if_alone(llama: PreTrainedModel, kind: type, batch: int) -> None:
    losses = token_losses(llama, [kind(sequence) for sequence in RAGGED], batch=batch)
    assert isinstance(losses, list)
    for row, sequence in zip(losses, RAGGED, strict=True):
        assert np.array_equal(row, token_losses(llama, [sequence])[0])


def test_ragged_sequences_of_one_length_share_a_pass_and_keep_their_order(llama: PreTrainedModel) -> None:
    sequences = [[5, 6, 7], [8, 9], [10, 11, 12], [13, 14]]
    shapes: list[tuple[int, ...]] = []
    finished: list[int] = []
    with llama.model.layers[0].register_forward_hook(lambda *made: shapes.append(tuple(made[1][0].shape[:2]))):
        losses = token_losses(llama, sequences, batch=2, on_progress=finished.append)
    assert shapes == [(2, 3), (2, 2)]
    assert finished == [2, 4]
    for row, sequence in zip(losses, sequences, strict=True):
        np.testing.assert_allclose(row, token_losses(llama, [sequence])[0], atol=1e-5)


def test_ragged_sequences_take_positions_of_their_shape(llama: PreTrainedModel) -> None:
    positions = [[0, 1, 2, 50, 51, 52, 53], [0, 9], [0, 1, 2, 3, 4]]
    losses = token_losses(llama, RAGGED, positions=positions)
    assert np.array_equal(losses[0], token_losses(llama, RAGGED[:1], positions=np.array(positions[:1]))[0])
    assert np.array_equal(losses[2], token_losses(llama, RAGGED[2:])[0])
    with pytest.raises(LongRopeError, match=r"positions of lengths \[7, 2\]: .* one for every token"):
        token_losses(llama, RAGGED, positions=positions[:2])


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        (
            [[1, 2], [3, families.VOCABULARY]],
            rf"sequences\[1\]\[1\] = {families.VOCABULARY}: .*vocab_size = {families.VOCABULARY}",
        ),
        (torch.tensor([[1, 2, 10**6]]), r"sequences\[0\]\[2\] = 1000000: .* tokenizer that belongs to the model"),
        (np.array([[1, -100]]), r"sequences\[0\]\[1\] = -100: a token id is 0 or more"),
        ([[1, 2.5, 3]], r"sequences\[0\]\[1\] = 2.5: not a whole number"),
        ([[1, 2], []], r"sequences\[1\] = \[\]: a loss needs two tokens"),
        ([[7]], r"sequences\[0\] = \[7\]: a loss needs two tokens"),
        ([], "sequences = .*Pass at least one"),
    ],
)
def test_token_ids_that_the_model_does_not_have_are_refused(
    llama: PreTrainedModel, sequences: object, message: str
) -> None:
    with pytest.raises(LongRopeError, match=message):
        token_losses(llama, sequences)


@pytest.mark.parametrize("kind", ["gemma4_text", "gemma4_unified_text"])
def test_a_head_that_reads_more_of_the_backbone_than_hidden_states(kind: str, tokens: np.ndarray) -> None:
    model, ids = all_types.build(kind), torch.from_numpy(tokens[:2])
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    losses = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(2, -1)
    np.testing.assert_allclose(token_losses(model, ids, batch=2), losses, atol=1e-4)


def test_rows_with_factors_of_their_own_from_the_first_pass_on(tokens: np.ndarray) -> None:
    model, scalings = families.build("llama"), [Scaling([2.0] * 8), Scaling([3.0] * 8)]
    with patch(model, scalings):
        together = token_losses(model, tokens[:2], batch=2)
    for row, scaling in enumerate(scalings):
        with patch(model, scaling):
            np.testing.assert_allclose(token_losses(model, tokens[row : row + 1])[0], together[row], atol=1e-4)


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"skip": -1}, {"skip": 1.5}])
def test_a_batch_or_skip_out_of_range_is_named(wrong: dict[str, float], tokens: np.ndarray) -> None:
    (name,) = wrong
    with pytest.raises(LongRopeError, match=f"{name} = .* must be a whole number"):
        token_losses(families.build("llama"), tokens, **wrong)  # type: ignore[call-overload]
