"""What a `LongRoPE` accepts as factors and positions, shows as attributes, and carries in its state dict."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import families
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from longrope import LongRoPE
from longrope.errors import LongRopeError
from longrope.models.patch import install_factors, patch
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling

VALUES = [1.0, 1.5, 4.0, 8.0]  # exact in every float dtype
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def equal(module: LongRoPE, other: LongRoPE, length: int = 100) -> bool:
    x = torch.zeros(len(module.scalings) if not module.by_length else 1, length, 1)
    return all(torch.equal(*pair) for pair in zip(module(x), other(x), strict=True))


def small(**changes: object) -> LongRoPE:
    fields = {"search_factors": VALUES, "original_max_position": 64, "max_position": 512}
    return LongRoPE(8, **{**fields, **changes})


def test_the_usage_example_with_searched_factors_in_a_tensor() -> None:
    factors = torch.tensor([1.0] * 20 + np.linspace(1, 512, 44).tolist())
    long_rope = LongRoPE(dim=128, max_position=2097152, original_max_position=4096, search_factors=factors)
    as_list = LongRoPE(
        dim=128, max_position=2097152, original_max_position=4096, search_factors=factors.double().tolist()
    )
    assert equal(long_rope, as_list, 4097)
    assert torch.equal(long_rope.long_factors, factors)


def test_the_usage_example_without_searched_factors() -> None:
    long_rope = LongRoPE(dim=128, max_position=2097152, original_max_position=4096)
    cos, sin = long_rope(torch.zeros(1, 4097, 16))
    assert cos.shape == sin.shape == (1, 4097, 128)
    assert long_rope.long_factors[-1] > 200


def test_rows_whose_factors_are_new() -> None:
    """Up to L0 the model's own, beyond L0 others; with short factors of a search, both are new."""
    rope, long = Rope(8, 1e4, 64), Scaling(VALUES, length=512)
    positions = torch.stack([torch.arange(20), torch.arange(50, 70)])
    module = LongRoPE.of(Extension.of(rope, long))
    assert module.rescales(positions).tolist() == [False, True]
    assert module.rescales(positions[:1]).tolist() == [False]
    searched = LongRoPE.of(Extension(rope, Scaling([1.0, 1.0, 1.0, 1.5]), long, 512))
    assert searched.rescales(positions).tolist() == [True, True]


def test_rows_of_their_own_have_a_row_of_factors_each() -> None:
    scalings = [Scaling(VALUES, length=512), Scaling([1.0, 1.0, 1.0, 1.5], length=512)]
    module = LongRoPE.static(Rope(8, 1e4, 64), scalings)
    assert module.long_factors.tolist() == module.short_factors.tolist() == [list(one.factors) for one in scalings]
    assert module.rescales(torch.arange(20).expand(2, -1)).tolist() == [True, True]
    assert LongRoPE.static(Rope(8, 1e4, 64), scalings[:1]).short_factors.tolist() == VALUES


@pytest.mark.parametrize("name", ["search_factors", "short_factors"])
@pytest.mark.parametrize(
    "factors",
    [
        *(torch.tensor(VALUES, dtype=dtype) for dtype in DTYPES),
        torch.tensor(VALUES, requires_grad=True),
        np.array(VALUES),
        np.array(VALUES, dtype=np.float32),
        np.array(VALUES, dtype=np.float16),
        tuple(VALUES),
        [torch.tensor(value) for value in VALUES],
        list(np.array(VALUES)),
    ],
    ids=str,
)
def test_factors_of_every_type_equal_a_list(name: str, factors: object) -> None:
    assert equal(small(**{name: factors}), small(**{name: VALUES}), 64 if name == "short_factors" else 100)
    assert Scaling(factors) == Scaling(VALUES)


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        (torch.tensor([1.0, math.nan, 1.0, 1.0]), r"factors\[1\] = nan must be a finite number above 0"),
        (torch.ones(4, dtype=torch.bool), r"factors\[0\] = True must be"),
        (torch.ones(1, 4), r"factors\[0\] = \[1.0, 1.0, 1.0, 1.0\] must be"),
        (torch.tensor(2.0), r"factors = tensor\(2.\) must be a list of numbers"),
        (torch.ones(3), "factors: 3 values for a rope of dim 8"),
    ],
)
def test_tensors_that_hold_no_factors_are_refused(factors: Tensor, message: str) -> None:
    with pytest.raises(LongRopeError, match=message):
        small(search_factors=factors)


def test_numbers_may_be_0d_tensors_and_arrays() -> None:
    module = LongRoPE(
        torch.tensor(8), np.int64(512), torch.tensor(64), torch.tensor(10000.0), VALUES, mscale=np.ones(())
    )
    assert equal(module, small())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_whole_number_floats_are_positions(dtype: torch.dtype) -> None:
    n = 200
    positions = torch.arange(n)[None].to(dtype)
    x = torch.zeros(1, n, 1)
    for module in (small(), LongRoPE.static(Rope(8, 1e4, 64), [Scaling(VALUES, start_tokens=3)])):
        floats = module(x, position_ids=positions)
        assert all(torch.equal(*pair) for pair in zip(floats, module(x, torch.arange(n)[None]), strict=True))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32])
def test_positions_of_every_integer_dtype(dtype: torch.dtype) -> None:
    positions = torch.arange(120, dtype=dtype)[None]
    floats = small()(torch.zeros(1, 120, 1), positions)
    assert all(torch.equal(*pair) for pair in zip(floats, small()(torch.zeros(1, 120, 1)), strict=True))


@pytest.mark.parametrize(
    ("position", "dtype", "shown"),
    [
        (1.5, torch.float32, "1.5"),
        (0.25, torch.bfloat16, "0.25"),
        (math.nan, torch.float32, "nan"),
        (math.inf, torch.float32, "inf"),
        (300, torch.bfloat16, "300.0"),  # 299 and 301 would be 300 too
        (2050, torch.float16, "2050.0"),
        (2.0**25, torch.float32, "33554432.0"),
    ],
)
def test_other_floats_are_refused_with_the_value(position: float, dtype: torch.dtype, shown: str) -> None:
    positions = torch.tensor([[0, position]], dtype=dtype)
    with pytest.raises(LongRopeError, match=f"^position_ids = {shown}: positions are whole numbers, up to"):
        small()(torch.zeros(1, 2, 1), positions)


def test_attributes() -> None:
    module = small(short_factors=[1.0, 1.25, 1.5, 2.0])
    assert (module.dim, module.max_position, module.original_max_position, module.scale) == (8, 512, 64, 8.0)
    torch.testing.assert_close(module.inv_freq_base, 1 / 10000 ** (torch.arange(0, 8, 2) / 8))
    assert torch.equal(module.long_factors, torch.tensor(VALUES))
    assert torch.equal(module.short_factors, torch.tensor([1.0, 1.25, 1.5, 2.0]))
    module.to(torch.bfloat16)
    assert module.long_factors.dtype == module.inv_freq_base.dtype == torch.float32


def test_repr_shows_the_geometry() -> None:
    assert repr(small()) == (
        "LongRoPE(dim=8, base=10000, original_max_position=64, max_position=512, attention_factor=1.20794)"
    )
    short, long = Scaling(VALUES), Scaling(VALUES, attention_factor=1.25)
    extension = Extension(rope=Rope(8, 5e5, 64), short=short, long=long, length=512)
    assert repr(LongRoPE.of(extension)).endswith(
        "base=500000, original_max_position=64, max_position=512, attention_factor=1 / 1.25)"
    )


MODULES = {
    "constructor": (small(short_factors=[1.1] * 4, mscale=1.7), small(search_factors=None)),
    "extension": (
        LongRoPE.of(
            Extension(
                rope=Rope(8, 1e4, 64),
                short=Scaling([0.1 + 0.2] * 4, attention_factor=0.9),
                long=Scaling(VALUES, attention_factor=1.3, start_tokens=4),
                length=512,
            )
        ),
        small(),
    ),
    "static": (
        LongRoPE.static(Rope(8, 1e4, 64), [Scaling([2.0] * 4, start_tokens=7), Scaling([1 / 3] * 4)]),
        LongRoPE.static(Rope(8, 1e4, 64), [Scaling([1.0] * 4), Scaling([1.0] * 4)]),
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_the_state_dict_carries_the_factors(name: str, tmp_path: Path) -> None:
    saved, fresh = (copy.deepcopy(module) for module in MODULES[name])
    assert not equal(saved, fresh)
    save_file(saved.to(torch.bfloat16).state_dict(), tmp_path / "module.safetensors")
    fresh.load_state_dict(load_file(tmp_path / "module.safetensors"))
    assert fresh.scalings == saved.scalings
    for length in (64, 100):
        assert equal(fresh, saved, length)
    torch.save(nn.ModuleList([saved]).state_dict(), tmp_path / "module.pt")
    module_list = nn.ModuleList([copy.deepcopy(MODULES[name][1])])
    module_list.load_state_dict(torch.load(tmp_path / "module.pt", weights_only=True))
    assert equal(module_list[0], saved)


def test_a_module_of_another_geometry_is_refused() -> None:
    state = small().state_dict()
    for fields, message in (
        ({"base": 5e5}, "base = 10000.0: this module has 500000.0"),
        ({"original_max_position": 128}, "original_max_position = 64: this module has 128"),
        ({"max_position": 1024}, "max_position = 512: this module has 1024"),
    ):
        module = small(**fields)
        before = copy.deepcopy(module)
        with pytest.raises(LongRopeError, match=f"^state_dict {message}. Build the module with the same geometry"):
            module.load_state_dict(state)
        assert equal(module, before)
    with pytest.raises(LongRopeError, match="dim = 8: this module has 16"):
        LongRoPE(16, 512, 64).load_state_dict(state)
    with pytest.raises(LongRopeError, match="by_length = True: this module has False"):
        MODULES["static"][1].load_state_dict(state)
    with pytest.raises(RuntimeError, match="Missing key"):
        small().load_state_dict({})
    with pytest.raises(LongRopeError, match="_extra_state: damaged"):
        small().load_state_dict({"_extra_state": torch.zeros(5, dtype=torch.uint8)})


class Config(PreTrainedConfig):
    model_type = "longrope-inside"


class Model(PreTrainedModel):
    """A user's own transformers model with a `LongRoPE` of its own."""

    config_class = Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.layer = nn.Linear(2, 2)
        self.rotary_emb = small(search_factors=None)
        self.post_init()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_transformers_model_with_the_module_inside_survives_save_and_load(tmp_path: Path, dtype: torch.dtype) -> None:
    model = Model(Config())
    model.rotary_emb.load_state_dict(small().state_dict())
    model.save_pretrained(tmp_path)
    loaded, info = Model.from_pretrained(tmp_path, output_loading_info=True, dtype=dtype)
    assert not any(info.values())
    assert equal(loaded.rotary_emb, small())


def test_an_attached_model_saves_and_loads_the_keys_of_the_original(tmp_path: Path) -> None:
    model = families.build("llama")
    plain = {name: weights.clone() for name, weights in model.state_dict().items()}
    extension = Extension.of(Rope.of(model), Scaling([2.0] * 8, length=512))
    with patch(model, Scaling([3.0] * 8)):
        assert model.state_dict().keys() == plain.keys()
    install_factors(model, extension)
    assert model.state_dict().keys() == plain.keys()
    attached = families.logits(model, families.tokens(1, 100))
    assert str(model.load_state_dict(plain)) == "<All keys matched successfully>"
    assert torch.equal(families.logits(copy.deepcopy(model), families.tokens(1, 100)), attached)
    model.save_pretrained(tmp_path)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(families.logits(install_factors(loaded, extension), families.tokens(1, 100)), attached)
