from __future__ import annotations

import weakref

import families
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from longrope.data.training_windows import IGNORED
from longrope.errors import LongRopeError
from longrope.longcontext import training_loss as module
from longrope.longcontext.distillation import Distillation
from longrope.longcontext.sparse_attention import sparse_masks
from longrope.longcontext.training_loss import use_chunked_loss

# and with the heads' own soft cap and scales
MODELS: dict[str, tuple[str, dict[str, float]]] = {name: (name, {}) for name in families.FAMILIES}
MODELS |= {
    "gemma2 capped": ("gemma2", {"final_logit_softcapping": 5.0}),
    "cohere scaled": ("cohere", {"logit_scale": 0.3}),
    "granite scaled": ("granite", {"logits_scaling": 4.0, "embedding_multiplier": 3.0}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "qwen2_moe": ("qwen2_moe", {"num_experts": 6, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}),
}
EVERY = pytest.mark.parametrize("name", MODELS)
ROWS, LENGTH, POSITIONS = 2, 50, 7  # positions of one chunk


def build(name: str) -> PreTrainedModel:
    family, fields = MODELS[name]
    return families.build(family, **fields)


@pytest.fixture(autouse=True)
def chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks for one sequence."""
    monkeypatch.setattr(module, "logits_on", lambda _: ROWS * families.VOCABULARY * POSITIONS)


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return families.tokens(ROWS, LENGTH)


@pytest.fixture(scope="module")
def labels(ids: Tensor) -> Tensor:
    """Some are not predicted: a whole chunk, and others here and there."""
    found = ids.clone()
    found[0, 8:16] = found[1, ::3] = found[:, 0] = IGNORED
    return found


def gradients(model: PreTrainedModel, **given: Tensor) -> tuple[float, dict[str, Tensor | None]]:
    """The loss, and the gradient of every parameter."""
    model.zero_grad()
    loss = model(**given).loss
    loss.backward()
    return loss.item(), {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_same(found: tuple[float, dict[str, Tensor | None]], wanted: tuple[float, dict[str, Tensor | None]]) -> None:
    assert found[0] == pytest.approx(wanted[0], rel=1e-5)
    assert found[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        if gradient is None:
            assert found[1][name] is None, name
        else:
            torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-4 * gradient.abs().max().item())


@EVERY
def test_loss_and_gradients_are_those_of_the_models_own_forward(name: str, ids: Tensor, labels: Tensor) -> None:
    wanted = gradients(build(name), input_ids=ids, labels=labels)
    found = gradients(use_chunked_loss(build(name)), input_ids=ids, labels=labels)
    assert_same(found, wanted)
    assert max(one.abs().max() for one in wanted[1].values() if one is not None) > 0.01


def recomputing(model: PreTrainedModel) -> PreTrainedModel:
    """Let the backward pass compute each layer again."""
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{kind}_checkpointing_enable")({"use_reentrant": False})
    return model.train()


@EVERY
def test_gradient_checkpointing_changes_nothing(name: str, ids: Tensor, labels: Tensor) -> None:
    wanted = gradients(build(name), input_ids=ids, labels=labels)
    model = recomputing(use_chunked_loss(build(name)))
    calls: list[int] = []
    part = next(model.base_model.get_submodule("layers.1").children())
    with part.register_forward_pre_hook(lambda *_: calls.append(1)):
        found = gradients(model, input_ids=ids, labels=labels)
    assert len(calls) == 2  # once more in the backward pass
    assert_same(found, wanted)


@EVERY
def test_documents_with_positions_of_their_own_do_not_see_each_other(name: str, ids: Tensor) -> None:
    """Packed one after the other, they have the loss and the gradients that they have alone."""
    cuts, given = [17, 21, 12], ids[:1]
    model = use_chunked_loss(build(name))
    positions = torch.cat([torch.arange(cut) for cut in cuts])[None]
    labels = torch.where(positions == 0, IGNORED, given)
    found = gradients(model, input_ids=given, labels=labels, position_ids=positions)
    alone, total = build(name), LENGTH - len(cuts)
    loss = sum(alone(input_ids=one, labels=one).loss * (one.shape[1] - 1) for one in given.split(cuts, 1)) / total
    loss.backward()
    wanted = {name: parameter.grad for name, parameter in alone.named_parameters()}
    assert_same(found, (loss.item(), wanted))
    seen = model(input_ids=given, labels=labels).loss.item()
    assert abs(seen - found[0]) > 1e-3  # else nothing above would tell


def test_gaps_between_positions_are_seen_through_with_a_mask(ids: Tensor) -> None:
    model, positions = build("llama"), torch.arange(LENGTH)[None].repeat(ROWS, 1)
    positions[:, 20:] += 300
    given = {"input_ids": ids, "position_ids": positions, "attention_mask": torch.ones_like(ids)}
    wanted = gradients(model, **given, labels=ids)
    assert_same(gradients(use_chunked_loss(build("llama")), **given, labels=ids), wanted)
    without = use_chunked_loss(model)(input_ids=ids, position_ids=positions, labels=ids).loss.item()
    assert abs(without - wanted[0]) > 1e-3


@pytest.mark.parametrize("name", ["llama", "gemma2 capped", "mixtral"])
def test_shifted_labels_stand_beside_the_token_that_predicts_them(name: str, ids: Tensor, labels: Tensor) -> None:
    model = use_chunked_loss(build(name))
    wanted = gradients(model, input_ids=ids, labels=labels)
    ends = torch.full((ROWS, 1), IGNORED)
    shifted = gradients(model, input_ids=ids, shift_labels=torch.cat([labels[:, 1:], ends], dim=1))
    assert_same(shifted, wanted)


@pytest.mark.parametrize("count", [160, torch.tensor(160)])
@pytest.mark.parametrize("name", ["llama", "cohere scaled"])
def test_the_sum_over_a_given_number(name: str, count: int | Tensor, ids: Tensor, labels: Tensor) -> None:
    """What several sequences of a step need: their mean is over the predicted tokens of all of them."""
    given = {"input_ids": ids, "labels": labels, "num_items_in_batch": count}
    wanted = gradients(build(name), **given)
    assert_same(gradients(use_chunked_loss(build(name)), **given), wanted)
    mean = use_chunked_loss(build(name))(input_ids=ids, labels=labels).loss.item()
    assert wanted[0] == pytest.approx(mean * (labels[:, 1:] != IGNORED).sum().item() / 160, rel=1e-5)


@pytest.mark.parametrize("positions", [1, 7, 49, 50, 1000])
def test_the_size_of_the_chunks_does_not_matter(
    positions: int, ids: Tensor, labels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = gradients(build("llama"), input_ids=ids, labels=labels)
    monkeypatch.setattr(module, "logits_on", lambda _: ROWS * families.VOCABULARY * positions)
    assert_same(gradients(use_chunked_loss(build("llama")), input_ids=ids, labels=labels), wanted)


@EVERY
def test_no_more_logits_at_once_than_said(name: str, ids: Tensor) -> None:
    """Each is computed once, as its backward pass follows at once."""
    model, sizes = use_chunked_loss(build(name)), []
    with model.get_output_embeddings().register_forward_hook(lambda *made: sizes.append(made[2].shape[:2].numel())):
        gradients(model, input_ids=ids, labels=ids)
    assert max(sizes) == len(ids) * POSITIONS
    assert sum(sizes) == len(ids) * LENGTH


def test_no_logits_are_kept_for_the_backward_pass(ids: Tensor) -> None:
    model, kept = use_chunked_loss(build("llama")), []

    def keep(tensor: Tensor) -> Tensor:
        kept.append((tensor.shape, weakref.ref(tensor)))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(input_ids=ids, labels=ids).loss
    assert loss.requires_grad
    made = [one for shape, one in kept if shape[-1:] == (families.VOCABULARY,)]
    assert made
    assert not [one for one in made if one() is not None]
    assert [one for _, one in kept if one() is not None]  # of the backbone


def test_without_gradients(ids: Tensor, labels: Tensor) -> None:
    """As a trainer evaluates."""
    model = use_chunked_loss(build("llama"))
    with torch.no_grad():
        loss = model(input_ids=ids, labels=labels).loss
    assert not loss.requires_grad
    assert loss.item() == pytest.approx(gradients(model, input_ids=ids, labels=labels)[0], rel=1e-6)


def test_frozen_weights_get_no_gradient(ids: Tensor, labels: Tensor) -> None:
    """As with LoRA: the head is frozen, the hidden states carry a gradient."""
    wanted = gradients(build("llama"), input_ids=ids, labels=labels)
    model = use_chunked_loss(build("llama"))
    model.get_output_embeddings().requires_grad_(False)
    found = gradients(model, input_ids=ids, labels=labels)
    assert found[1].pop("lm_head.weight") is None
    del wanted[1]["lm_head.weight"]
    assert_same(found, wanted)


def test_the_backbone_runs_once_and_is_what_it_was(ids: Tensor) -> None:
    model, calls = build("llama"), []
    hidden = model.base_model(input_ids=ids).last_hidden_state
    use_chunked_loss(model)
    with model.base_model.layers[1].register_forward_hook(lambda *_: calls.append(1)):
        gradients(model, input_ids=ids, labels=ids)
    assert len(calls) == 1
    assert "forward" not in vars(model.base_model)
    assert torch.equal(model.base_model(input_ids=ids).last_hidden_state, hidden)


def test_bfloat16_losses_are_summed_in_float32(ids: Tensor) -> None:
    model = build("llama").to(torch.bfloat16)
    wanted = model(input_ids=ids, labels=ids).loss
    found = use_chunked_loss(model)(input_ids=ids, labels=ids).loss
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(wanted.item(), rel=1e-4)


def test_it_returns_the_model() -> None:
    model = build("llama")
    assert use_chunked_loss(model) is model


def by_token(model: PreTrainedModel, ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits and the losses of the labels, each of the token before."""
    logits = model(input_ids=ids).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="none")
    return logits, losses.view(len(ids), -1)


def test_weights_multiply_the_losses_of_their_tokens(ids: Tensor, labels: Tensor) -> None:
    weights = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0))
    model = build("llama")
    wanted = (by_token(model, ids, labels)[1] * weights[:, 1:]).sum() / (labels[:, 1:] != IGNORED).sum()
    found = use_chunked_loss(model)(input_ids=ids, labels=labels, weights=weights).loss
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_distillation_adds_the_cross_entropy_to_the_teacher(ids: Tensor, labels: Tensor, weight: float) -> None:
    model, teacher = build("llama"), build("mistral")
    teacher.get_output_embeddings().weight.data *= -2  # else both distributions are nearly equal
    logits, losses = by_token(model, ids, labels)
    expected = teacher(input_ids=ids).logits[:, :-1].softmax(-1)
    soft = -(expected * logits.log_softmax(-1)).sum(-1)
    predicted = labels[:, 1:] != IGNORED
    wanted = ((1 - weight) * losses + weight * soft)[predicted].mean()
    wanted.backward()
    reference = {name: parameter.grad for name, parameter in model.named_parameters()}
    distillation = Distillation(teacher.requires_grad_(False), weight, longest=families.L0)
    found = gradients(use_chunked_loss(build("llama"), distillation), input_ids=ids, labels=labels)
    assert_same(found, (wanted.item(), reference))


def test_long_sequences_have_no_teacher(ids: Tensor, labels: Tensor) -> None:
    positions = torch.arange(LENGTH).expand(ROWS, -1) + families.L0 - LENGTH + 1
    distillation = Distillation(build("mistral"), 0.5, longest=families.L0)
    taught = use_chunked_loss(build("llama"), distillation)(input_ids=ids, labels=labels, position_ids=positions).loss
    alone = use_chunked_loss(build("llama"))(input_ids=ids, labels=labels, position_ids=positions).loss
    assert torch.equal(taught, alone)


def student_and_teacher(name: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Two models whose hidden states differ: in the student every weight is a little larger or smaller."""
    model, draw = build(name), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=draw))
    return model, build(name).requires_grad_(False)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", ["llama", "gemma2 capped", "gpt_neox", "qwen2_moe"])
def test_the_distance_of_hidden_states_has_a_weight(name: str, recompute: bool, ids: Tensor, labels: Tensor) -> None:
    model, teacher = student_and_teacher(name)
    states, wanted = (one(input_ids=ids, output_hidden_states=True).hidden_states[1:] for one in (model, teacher))
    cosines = [torch.nn.functional.cosine_similarity(*pair, dim=-1) for pair in zip(states, wanted, strict=True)]
    predicted = labels[:, 1:] != IGNORED
    loss = by_token(model, ids, labels)[1].sum() / predicted.sum()
    loss = loss + 3 * (1 - torch.stack(cosines).mean()) * ids.numel() / predicted.sum()
    loss.backward()
    reference = {key: parameter.grad for key, parameter in model.named_parameters()}
    student = use_chunked_loss(student_and_teacher(name)[0], Distillation(teacher, 0.0, families.L0, hidden=3.0))
    if recompute:
        recomputing(student)
    calls: list[int] = []
    with teacher.get_output_embeddings().register_forward_hook(lambda *_: calls.append(1)):
        assert_same(gradients(student, input_ids=ids, labels=labels), (loss.item(), reference))
    assert not calls  # the distribution has no weight


def test_the_teacher_reads_a_text_whose_positions_jump_without_the_jump(ids: Tensor, labels: Tensor) -> None:
    model, teacher = student_and_teacher("llama")
    plain = torch.arange(LENGTH).expand(ROWS, -1)
    jumps = {"position_ids": plain + 500 * (plain > 20), "attention_mask": torch.ones_like(ids)}
    expected = teacher(input_ids=ids).logits[:, :-1].softmax(-1)
    soft = -(expected * model(input_ids=ids, **jumps).logits[:, :-1].log_softmax(-1)).sum(-1)
    taught = use_chunked_loss(model, Distillation(teacher, 1.0, families.L0))
    found = taught(input_ids=ids, labels=labels, teacher_position_ids=plain, **jumps).loss
    assert found.item() == pytest.approx(soft[labels[:, 1:] != IGNORED].mean().item(), rel=1e-5)


def test_a_teacher_with_other_layers_is_refused(ids: Tensor) -> None:
    teacher = families.build("llama", num_hidden_layers=3)
    taught = use_chunked_loss(build("llama"), Distillation(teacher, 1.0, families.L0, hidden=1.0))
    with pytest.raises(LongRopeError, match=r"^distill\.hidden: the model gives 3 hidden states and its teacher 4"):
        taught(input_ids=ids, labels=ids)


def test_sparse_windows_see_weighed_keys(ids: Tensor, labels: Tensor) -> None:
    positions = torch.arange(LENGTH).expand(ROWS, -1) + 500 * (torch.arange(LENGTH) > 20)
    chunk_ids, key_bias = (positions > 500).long(), torch.full((ROWS, LENGTH), 2.0)
    model = build("llama")
    masks = sparse_masks(model, positions, chunk_ids, key_bias)
    wanted = model(input_ids=ids, labels=labels, position_ids=positions, attention_mask=masks).loss
    batch = {"position_ids": positions, "chunk_ids": chunk_ids, "key_bias": key_bias}
    found = use_chunked_loss(model)(input_ids=ids, labels=labels, **batch).loss
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert abs(use_chunked_loss(build("llama"))(input_ids=ids, labels=labels).loss.item() - wanted.item()) > 1e-3


def test_without_labels_the_remedy_is_named(ids: Tensor) -> None:
    with pytest.raises(LongRopeError, match=r"^labels = None: .* Pass labels=input_ids\.$"):
        use_chunked_loss(build("llama"))(input_ids=ids)
