from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from longrope import LongRoPE
from longrope.errors import LongRopeError
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling
from longrope.schemes import heuristic

ROPE = Rope(dim=8, base=10000.0, original_length=64)
SHORT, LONG = [1.0, 1.1, 1.2, 1.3], [1.0, 2.0, 4.0, 8.0]
FAR = (2**21 - 1, 2**21, 2**21 + 1, 3_141_592, 2**24 - 4096, 2**24 - 1)
EDGES = (0, 1, 4095, 4096, 4097)


def reference(inv_freq: np.ndarray, positions: np.ndarray, attention: float = 1.0) -> tuple[Tensor, Tensor]:
    """Cos and sin in float64, ``(…, sequence, dim)``, both halves alike."""
    phases = np.asarray(positions, dtype=np.float64)[..., None] * inv_freq
    phases = np.concatenate([phases, phases], axis=-1)
    return torch.from_numpy(attention * np.cos(phases)), torch.from_numpy(attention * np.sin(phases))


def assert_close(made: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], atol: float = 1e-6) -> None:
    for one, other in zip(made, expected, strict=True):
        torch.testing.assert_close(one.double(), other.expand_as(one), rtol=0, atol=atol)


def module(**changed: object) -> LongRoPE:
    fields = {"search_factors": LONG, "short_factors": SHORT, "original_max_position": 64, "max_position": 512}
    return LongRoPE(8, **{**fields, **changed})


def test_usage_with_searched_factors() -> None:
    factors = [1.0] * 20 + np.linspace(1, 512, 44).tolist()
    long_rope = LongRoPE(dim=128, max_position=2097152, original_max_position=4096, search_factors=factors)
    cos, sin = long_rope(torch.zeros(2, 4097, 16))
    assert cos.shape == sin.shape == (1, 4097, 128)
    rope = Rope(dim=128, base=10000.0, original_length=4096)
    expected = reference(rope.inv_freq / np.array(factors), np.arange(4097)[None], 0.1 * math.log(512) + 1)
    assert_close((cos, sin), expected, 2e-6)


def test_usage_without_searched_factors() -> None:
    long_rope = LongRoPE(dim=128, max_position=2097152, original_max_position=4096)
    rope = Rope(dim=128, base=10000.0, original_length=4096)
    expected = reference(heuristic(rope, 2097152).inv_freq(rope), np.arange(4097)[None], 0.1 * math.log(512) + 1)
    assert_close(long_rope(torch.zeros(1, 4097, 16)), expected, 2e-6)
    expected = reference(rope.inv_freq, np.arange(4096)[None], 0.1 * math.log(512) + 1)
    assert_close(long_rope(torch.zeros(1, 4096, 16)), expected, 2e-6)


def test_the_defaults_are_those_of_the_paper() -> None:
    made = LongRoPE(8)
    assert made.rope == Rope(dim=8, base=10000.0, original_length=4096)
    assert [one.length for one in made.scalings] == [2097152, 2097152]
    assert [one.attention_factor for one in made.scalings] == [0.1 * math.log(512) + 1] * 2
    assert made.scalings[0].factors == (1.0,) * 4
    assert made.scalings[1].factors == heuristic(made.rope, 2097152).factors


@given(
    st.lists(st.integers(0, 2**24 - 1), min_size=1, max_size=6),
    st.lists(st.floats(0.5, 600), min_size=4, max_size=4),
    st.floats(0.5, 2),
    st.integers(0, 8),
)
def test_each_pair_is_rotated_by_both_halves_alike(
    positions: list[int], factors: list[float], attention: float, start_tokens: int
) -> None:
    """Its cos and sin lie on a circle whose radius is the attention factor."""
    scaling = Scaling(factors, attention_factor=attention, start_tokens=start_tokens)
    cos, sin = LongRoPE.static(ROPE, [scaling])(torch.zeros(1, 1, 1), torch.tensor([positions]))
    assert cos.shape == sin.shape == (1, len(positions), 8)
    assert torch.equal(cos[..., :4], cos[..., 4:])
    assert torch.equal(sin[..., :4], sin[..., 4:])
    torch.testing.assert_close(cos**2 + sin**2, torch.full_like(cos, attention**2), rtol=2e-6, atol=0)


@given(st.lists(st.lists(st.integers(0, 511), min_size=3, max_size=3), min_size=1, max_size=4), st.integers(0, 9))
def test_rows_of_a_batch_are_computed_each_for_itself(rows: list[list[int]], start_tokens: int) -> None:
    long = Scaling(LONG, attention_factor=1.2, start_tokens=start_tokens)
    embedding = LongRoPE.of(Extension(rope=ROPE, short=Scaling(SHORT), long=long, length=512))
    together = embedding(torch.zeros(len(rows), 3, 1), torch.tensor(rows))
    for row, positions in enumerate(rows):
        alone = embedding(torch.zeros(1, 3, 1), torch.tensor([positions]))
        assert all(torch.equal(both[row], one[0]) for both, one in zip(together, alone, strict=True))
        scaling = long if max(positions) >= 64 else Scaling(SHORT)
        static = LongRoPE.static(ROPE, [scaling])(torch.zeros(1, 3, 1), torch.tensor([positions]))
        assert all(torch.equal(*both) for both in zip(static, alone, strict=True))


@pytest.mark.parametrize("mscale", [1.0, 0.5])
def test_attention_of_the_constructor(mscale: float) -> None:
    for length in (10, 100):
        cos, _ = module(mscale=mscale)(torch.zeros(1, length, 1))
        assert torch.allclose(cos[0, 0], torch.full((8,), mscale * (0.1 * math.log(8) + 1)))


@pytest.mark.parametrize(("length", "factors"), [(1, SHORT), (64, SHORT), (65, LONG), (512, LONG)])
def test_the_length_of_x_decides(length: int, factors: list[float]) -> None:
    expected = reference(ROPE.inv_freq / np.array(factors), np.arange(length)[None], 0.1 * math.log(8) + 1)
    assert_close(module()(torch.zeros(2, length, 3)), expected)


@pytest.mark.parametrize(("seq_len", "factors"), [(64, SHORT), (65, LONG)])
@pytest.mark.parametrize("given_positions", [False, True])
def test_seq_len_decides_when_given(seq_len: int, factors: list[float], given_positions: bool) -> None:
    positions = torch.arange(70)[None] if given_positions else None
    expected = reference(ROPE.inv_freq / np.array(factors), np.arange(70)[None], 0.1 * math.log(8) + 1)
    assert_close(module()(torch.zeros(1, 70, 3), positions, seq_len), expected)


def test_each_row_decides_by_its_largest_position() -> None:
    positions = torch.stack([torch.arange(8), torch.arange(56, 64), torch.arange(57, 65), torch.arange(8).flip(0) * 20])
    made = module()(torch.zeros(4, 8, 3), positions)
    for row, factors in enumerate([SHORT, SHORT, LONG, LONG]):
        expected = reference(ROPE.inv_freq / np.array(factors), positions[row].numpy(), 0.1 * math.log(8) + 1)
        assert_close((made[0][row], made[1][row]), expected)


def test_an_extension_has_an_attention_factor_for_each_set() -> None:
    short, long = Scaling(SHORT, attention_factor=0.9), Scaling(LONG, attention_factor=1.3)
    embedding = LongRoPE.of(Extension(rope=ROPE, short=short, long=long, length=512))
    for length, scaling in ((64, short), (65, long)):
        expected = reference(scaling.inv_freq(ROPE), np.arange(length)[None], scaling.attention_factor)
        assert_close(embedding(torch.zeros(1, length, 1)), expected)


@pytest.mark.parametrize("start", [1, 3, 64])
def test_start_tokens_keep_the_original_rotation(start: int) -> None:
    scaling = Scaling(LONG, attention_factor=1.5, start_tokens=start)
    made = LongRoPE.static(ROPE, [scaling])(torch.zeros(1, 100, 1))
    inv_freq = np.where(np.arange(100)[:, None] < start, ROPE.inv_freq, scaling.inv_freq(ROPE))
    phases = np.tile(np.arange(100)[:, None] * inv_freq, 2)[None]
    assert_close(made, (torch.from_numpy(1.5 * np.cos(phases)), torch.from_numpy(1.5 * np.sin(phases))))


def test_start_tokens_of_one_set_leave_the_other_alone() -> None:
    short, long = Scaling(SHORT), Scaling(LONG, start_tokens=4)
    embedding = LongRoPE.of(Extension(rope=ROPE, short=short, long=long, length=512))
    assert_close(embedding(torch.zeros(1, 10, 1)), reference(short.inv_freq(ROPE), np.arange(10)[None]))
    cos, _ = embedding(torch.zeros(1, 100, 1))
    assert_close((cos[:, :4],), reference(ROPE.inv_freq, np.arange(4)[None])[:1])
    assert_close((cos[:, 4:],), reference(long.inv_freq(ROPE), np.arange(4, 100)[None])[:1])


def test_each_row_has_its_own_start_tokens() -> None:
    scalings = [Scaling(LONG, start_tokens=0), Scaling(SHORT, start_tokens=5), Scaling(LONG, start_tokens=9)]
    together = LongRoPE.static(ROPE, scalings)(torch.zeros(3, 20, 1))
    for row, scaling in enumerate(scalings):
        alone = LongRoPE.static(ROPE, [scaling])(torch.zeros(1, 20, 1))
        assert all(torch.equal(both[row], one[0]) for both, one in zip(together, alone, strict=True))


@pytest.mark.parametrize("dim", [2, 8, 64, 128])
@pytest.mark.parametrize("base", [1e4, 5e5])
def test_phases_are_exact_at_two_million_tokens_and_beyond(dim: int, base: float) -> None:
    rope = Rope(dim=dim, base=base, original_length=4096)
    scaling = Scaling(np.geomspace(1, 77.7, dim // 2).tolist())
    positions = [*EDGES, *FAR]
    made = LongRoPE.static(rope, [scaling])(torch.zeros(1, len(positions), 1), torch.tensor([positions]))
    with mpmath.workdps(40):
        turns = [mpmath.mpf(base) ** (mpmath.mpf(2 * i) / dim) for i in range(dim // 2)]
        pairs = [lam * turn for lam, turn in zip(scaling.factors, turns, strict=True)]
        phases = [[p / pair for pair in pairs * 2] for p in positions]
        expected = [[[float(turn(one)) for one in row] for row in phases] for turn in (mpmath.cos, mpmath.sin)]
    assert_close(made, tuple(torch.tensor([one], dtype=torch.float64) for one in expected))


@given(st.lists(st.integers(0, 2**24 - 1), min_size=1, max_size=8), st.floats(1, 600))
def test_phases_are_exact_anywhere(positions: list[int], factor: float) -> None:
    made = LongRoPE.static(ROPE, [Scaling([factor] * 4)])(torch.zeros(1, 1, 1), torch.tensor([positions]))
    phases = np.tile(np.outer(positions, ROPE.inv_freq.astype(np.longdouble) / factor), 2)[None]
    expected = tuple(torch.from_numpy(turn(phases).astype(np.float64)) for turn in (np.cos, np.sin))
    assert_close(made, expected)


SETS = {
    "one": LongRoPE.static(ROPE, [Scaling(LONG)]),
    "start tokens": LongRoPE.static(ROPE, [Scaling(LONG, start_tokens=4)]),
    "short and long": module(),
    "rows": LongRoPE.static(ROPE, [Scaling(SHORT), Scaling(LONG)]),
}


@pytest.mark.parametrize("length", [2**24, 2**24 + 1, 2**25])
def test_a_length_that_the_tables_do_not_reach_is_refused(length: int) -> None:
    rope = Rope(dim=8, base=1e4, original_length=64)
    long = Scaling([2.0] * 4, length=length)
    for make in (lambda: LongRoPE.static(rope, [long]), lambda: LongRoPE.of(Extension.of(rope, long))):
        if length <= 2**24:
            make()
            continue
        with pytest.raises(LongRopeError, match=f"length = {length}: .*16777216"):
            make()


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("position", [2**24, 2**24 + 5000, 2**25, -1])
@pytest.mark.parametrize("seq_len", [None, 64])
def test_positions_out_of_range_raise(name: str, position: int, seq_len: int | None) -> None:
    positions = torch.tensor([[position, 0], [0, 0]])
    with pytest.raises(IndexError):
        SETS[name](torch.zeros(2, 2, 1), positions, seq_len)


@pytest.mark.parametrize("cast", ["bfloat16", "half", "double", "float"])
def test_casting_the_module_leaves_the_numbers_exact(cast: str) -> None:
    positions = torch.tensor([[5, 63, 4097, 2**21 + 3]])
    plain = module()
    cast_ = getattr(copy.deepcopy(plain), cast)()
    x = torch.zeros(1, 4, 1)
    assert all(torch.equal(one, other) for one, other in zip(plain(x, positions), cast_(x, positions), strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_output_has_the_dtype_of_x_and_is_rounded_once(dtype: torch.dtype) -> None:
    exact = module()(torch.zeros(1, 100, 1))
    made = module()(torch.zeros(1, 100, 1, dtype=dtype))
    for one, other in zip(made, exact, strict=True):
        assert one.dtype == dtype
        assert torch.equal(one, other.to(dtype))


@pytest.mark.parametrize("name", SETS)
def test_cos_and_sin_are_on_the_device_of_x(name: str) -> None:
    """Also where the module is on another one, as where a model's layers are on several."""
    x = torch.zeros(2, 5, 1, device="meta")
    for positions in (None, *(torch.zeros(2, 5, dtype=torch.long, device=device) for device in ("meta", "cpu"))):
        for seq_len in (None, 64):
            cos, sin = SETS[name](x, positions, seq_len)
            assert (cos.device.type, sin.device.type) == ("meta", "meta")
            assert cos.shape[1:] == sin.shape[1:] == (5, 8)


@pytest.mark.parametrize("name", SETS)
def test_no_tokens_have_no_cos(name: str) -> None:
    assert SETS[name](torch.zeros(2, 0, 1))[0].shape[1:] == (0, 8)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SETS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_it_computes_the_same(name: str, backend: str) -> None:
    torch.compiler.reset()
    compiled = torch.compile(SETS[name], backend=backend, fullgraph=True)
    for length in (64, 65):
        x = torch.zeros(len(SETS[name].scalings) if name == "rows" else 1, length, 1)
        positions = torch.arange(length)[None]
        assert_close(compiled(x, positions), tuple(one.double() for one in SETS[name](x, positions)))


def test_static_rows_equal_one_by_one() -> None:
    scalings = [Scaling(LONG, attention_factor=1.1), Scaling(SHORT, attention_factor=1.2), Scaling([3.0] * 4)]
    positions = torch.tensor([0, 7, 5000, 2**23])[None]
    together = LongRoPE.static(ROPE, scalings)(torch.zeros(3, 4, 1), positions)
    for row, scaling in enumerate(scalings):
        alone = LongRoPE.static(ROPE, [scaling])(torch.zeros(1, 4, 1), positions)
        assert all(torch.equal(both[row], one[0]) for both, one in zip(together, alone, strict=True))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"search_factors": [1.0] * 3}, "factors: 3 values"),
        ({"short_factors": [1.0] * 8}, "factors: 8 values"),
        ({"search_factors": [1.0, math.nan, 1.0, 1.0]}, r"factors\[1\] = nan"),
        ({"max_position": 63}, "length = 63"),
        ({"base": 0.0}, "base = 0.0"),
        ({"original_max_position": 0}, "original_max_position = 0"),
        ({"mscale": 0.0}, "attention_factor = 0.0"),
        ({"mscale": math.inf}, "attention_factor = inf"),
    ],
)
def test_bad_arguments(fields: dict, message: str) -> None:
    with pytest.raises(LongRopeError, match=message):
        module(**fields)


@pytest.mark.parametrize("dim", [7, 0, -2])
def test_bad_dims(dim: int) -> None:
    with pytest.raises(LongRopeError, match=f"dim = {dim}"):
        LongRoPE(dim)


def test_an_empty_list_of_scalings_is_refused() -> None:
    with pytest.raises(LongRopeError, match=r"^scalings = \[\]: empty. Give one scaling, or one for each row"):
        LongRoPE.static(ROPE, [])


def test_an_extension_is_as_long_as_it_says_whatever_its_factors_are_made_for() -> None:
    extension = Extension(rope=ROPE, short=Scaling(SHORT), long=Scaling(LONG), length=512)
    assert LongRoPE.of(extension).scalings[1].length == 512
    with pytest.raises(LongRopeError, match=r"^length = 16777217: .* end at 16777216 \(16m\) tokens. Use a shorter"):
        LongRoPE.of(replace(extension, length=2**24 + 1))


@pytest.mark.parametrize("rows", [1, 3])
def test_another_number_of_rows_than_of_scalings_is_refused(rows: int) -> None:
    with pytest.raises(LongRopeError, match=f"^x has {rows} rows: the module has factors for 2. Give one"):
        SETS["rows"](torch.zeros(rows, 2, 1))


@pytest.mark.parametrize("reach", [1, 100, 4095, 4096, 4097, 9000])
@pytest.mark.parametrize("start_tokens", [0, 4])
def test_reach_changes_nothing_within_it(reach: int, start_tokens: int) -> None:
    scalings = [Scaling(LONG, attention_factor=1.1, start_tokens=start_tokens), Scaling(SHORT)]
    near = LongRoPE.static(ROPE, scalings, reach=reach)
    positions = torch.tensor([[0, reach // 2, reach - 1]])
    x = torch.zeros(2, 3, 1)
    far = LongRoPE.static(ROPE, scalings)(x, positions)
    assert all(torch.equal(one, other) for one, other in zip(near(x, positions), far, strict=True))


@pytest.mark.parametrize("reach", [1, 100, 4096, 9000])
@pytest.mark.parametrize("start_tokens", [0, 4])
def test_positions_beyond_reach_raise(reach: int, start_tokens: int) -> None:
    """Not only those beyond the table, which is made in whole blocks."""
    scalings = [Scaling(LONG, start_tokens=start_tokens), Scaling(SHORT)]
    embedding = LongRoPE.static(ROPE, scalings, reach=reach)
    for beyond in (reach, reach + 1, reach + 5000, 2**24, -1):
        with pytest.raises(IndexError):
            embedding(torch.zeros(2, 2, 1), torch.tensor([[0, beyond]]))


def test_integers_cannot_hold_cos_and_sin() -> None:
    with pytest.raises(LongRopeError, match=r"x.dtype = int64: cos and sin .*\. Pass a tensor of floats"):
        LongRoPE(dim=8, max_position=512, original_max_position=64)(torch.zeros(1, 10, dtype=torch.long))


@pytest.mark.parametrize("as_given", [torch.tensor, list, np.array, lambda positions: torch.tensor([positions])])
def test_positions_of_one_sequence_need_no_batch(as_given: Any) -> None:
    x = torch.zeros(1, 100, 1)
    made = LongRoPE(8, "512", "64", search_factors=LONG, short_factors=SHORT)(x, as_given(list(range(100))))
    cos, sin = module()(x)
    assert_close(made, (cos.double(), sin.double()))
    assert made[0].shape == (1, 100, 8)
