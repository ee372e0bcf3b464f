"""Models that something wraps: what runs gives the same numbers, and what cannot is refused with the remedy."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import Tensor
from torch.nn import DataParallel
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

import longrope as lr
from longrope.errors import LongRopeError
from longrope.models.adapter import describe_adapter, no_peft_warnings, switched_adapter
from longrope.rope import Rope
from longrope.scaling import Extension
from longrope.schemes import scheme

ROPE = Rope.of(families.config("llama"))
EXTENSION = Extension.of(ROPE, scheme("yarn", ROPE, 256))
IDS = families.tokens(1, 60)
LORA = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
PROMPTS = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
USES: dict[str, Callable[[Any], Any]] = {
    "patch": lambda model: lr.patch(model, EXTENSION).__enter__(),
    "token_losses": lambda model: lr.token_losses(model, IDS.numpy()),
    "perplexity": lambda model: lr.perplexity(model, IDS.numpy(), [32]),
    "generating": lambda model: lr.generating(model, EXTENSION).__enter__(),
    "apply": lambda model: lr.apply(model, EXTENSION),
    "context_parallel": lr.context_parallel,
}
every_use = pytest.mark.parametrize("use", USES.values(), ids=USES)


@pytest.fixture
def llama() -> PreTrainedModel:
    return families.build("llama")


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # pyright: ignore
    yield
    dist.destroy_process_group()


def adapted(model: PreTrainedModel, config: Any = LORA) -> Any:
    with no_peft_warnings(), torch.random.fork_rng():
        torch.manual_seed(0)
        return get_peft_model(model, copy.deepcopy(config))


def generated(model: Any) -> Tensor:
    """Continue 60 tokens beyond L0 = 64."""
    return model.generate(input_ids=IDS, max_new_tokens=6, do_sample=False, pad_token_id=0)


@every_use
@pytest.mark.usefixtures("one_process")
def test_wrappers_for_several_devices_are_refused_with_the_remedy(use: Callable[[Any], Any]) -> None:
    model = families.build("llama")
    for wrapper in (DataParallel(model), DistributedDataParallel(model)):
        with pytest.raises(LongRopeError, match=f"model = a {type(wrapper).__name__}: .* Give its module"):
            use(wrapper)
    use(model)


def test_no_factors_are_refused_for_a_wrapper_too(llama: PreTrainedModel) -> None:
    with pytest.raises(LongRopeError, match="Give its module"), lr.patch(DataParallel(llama), None):  # type: ignore
        pass


@every_use
def test_names_and_pairs_are_not_models(use: Callable[[Any], Any], llama: PreTrainedModel) -> None:
    for model in ("tiny", (llama, families.tokenizer()), None):
        if not (isinstance(model, str) and use is USES["perplexity"]):
            with pytest.raises(LongRopeError, match=f"model = a {type(model).__name__}: not a loaded model"):
                use(model)


@pytest.mark.parametrize("name", sorted(USES.keys() - {"context_parallel"}))
def test_weights_on_the_meta_device_are_refused(name: str, llama: PreTrainedModel) -> None:
    with pytest.raises(LongRopeError, match="meta device, where they have no values"):
        USES[name](llama.to("meta"))  # pyright: ignore[reportArgumentType]


def test_losses_of_a_peft_model_are_those_of_the_model_within_it() -> None:
    peft_model = adapted(families.build("llama"))
    for measure in (USES["token_losses"], USES["perplexity"]):
        with pytest.raises(LongRopeError, match=r"PeftModelForCausalLM: .*get_base_model\(\), which computes with the"):
            measure(peft_model)
    losses = lr.token_losses(peft_model.get_base_model(), IDS.numpy())
    assert np.abs(losses - lr.token_losses(families.build("llama"), IDS.numpy())).max() > 0.1
    np.testing.assert_allclose(losses, lr.token_losses(peft_model.merge_and_unload(), IDS.numpy()), atol=1e-3)


def test_losses_with_learned_prompts_are_not_promised() -> None:
    with pytest.raises(LongRopeError, match=r"get_base_model\(\), which computes without the prompts"):
        lr.token_losses(adapted(families.build("llama"), PROMPTS), IDS.numpy())


@pytest.mark.parametrize(
    ("wrap", "policy"),
    [(adapted, "switch"), (partial(torch.compile, backend="eager"), "pin")],
    ids=["peft", "compile"],
)
def test_a_wrapper_generates_what_the_model_does(wrap: Callable[[Any], Any], policy: str) -> None:
    wrapper: Any = wrap(families.build("llama", num_hidden_layers=1))
    plain = copy.deepcopy(wrapper)
    plain = plain.merge_and_unload() if wrap is adapted else plain._orig_mod
    made = []
    for model in (wrapper, plain):
        with lr.generating(model, EXTENSION, policy):
            made.append(generated(model))
        made.append(generated(model))
    assert torch.equal(made[0], made[2])
    assert torch.equal(made[1], made[3])
    assert not torch.equal(made[0], made[1])


def test_learned_prompts_are_not_switched() -> None:
    model = adapted(families.build("llama"), PROMPTS)
    with pytest.raises(LongRopeError, match="'switch' cannot read prompts"), lr.generating(model, EXTENSION, "switch"):
        pass


def test_an_adapter_of_experts_is_loaded_without_a_warning(tmp_path: Path) -> None:
    """peft compares its patterns of ranks with modules alone, and warns of those that match a parameter."""
    base, folder = tmp_path / "base", tmp_path / "adapter"
    families.build("mixtral").save_pretrained(base)
    families.tokenizer().save_pretrained(base)
    experts = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", init_lora_weights=False)
    adapted(families.build("mixtral"), experts).save_pretrained(folder)
    rope = Rope.of(families.config("mixtral"))
    describe_adapter(folder, base=str(base), factors=Extension.of(rope, scheme("yarn", rope, 256)).to_json())
    assert switched_adapter(lr.load(folder)[0]) is not None
