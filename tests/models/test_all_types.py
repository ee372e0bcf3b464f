"""Every causal type of the installed transformers with a RoPE: factors reach it, or it is refused for a reason."""

from __future__ import annotations

import re
from pathlib import Path

import all_types
import pytest
import torch

from longrope.errors import LongRopeError
from longrope.models.patch import patch
from longrope.rope import Rope
from longrope.schemes import scheme

LAYER_TYPES = "not a plain RoPE"
REFUSED = {
    "beam": LAYER_TYPES,
    "deepseek_v4": LAYER_TYPES,
    "zaya": LAYER_TYPES,
    "granite_swa": "2 rotary modules",
    "granitemoe_swa": "2 rotary modules",
    "moshi": "2 rotary modules",
    "recurrent_gemma": "max_position_embeddings = None",
    "zamba2": "0 rotary modules",
}
NOT_BUILT = {  # these default configs cannot be made small here
    "blt",
    "dbrx",
    "dots3_note",
    "dots3_note_text",
    "emu3",
    "gemma3n",
    "gemma4_unified_assistant",
    "qwen4_exp",
    "qwen4_exp_text",
}
TYPES = [kind for kind in all_types.causal_types() if kind not in NOT_BUILT]
DOCUMENT = Path(__file__).parents[2] / "docs" / "reference" / "model-types.md"


@pytest.mark.parametrize("kind", TYPES)
@torch.no_grad()
def test_factors_reach_the_type_or_a_reason_is_given(kind: str) -> None:
    model = all_types.build(kind)
    ids = torch.randint(3, all_types.VOCABULARY, (1, 40), generator=torch.Generator().manual_seed(0))
    before = model(input_ids=ids, use_cache=False).logits
    if kind in REFUSED:
        with pytest.raises(LongRopeError, match=REFUSED[kind]), patch(model, scheme("pi", Rope.of(model), 128)):
            pass
        return
    rope = Rope.of(model)
    with patch(model, scheme("yarn", rope, 2 * rope.original_length)):
        changed = model(input_ids=ids, use_cache=False).logits
    assert not torch.equal(changed, before)
    assert torch.equal(model(input_ids=ids, use_cache=False).logits, before)


def test_the_document_lists_every_type() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    extended = sorted(set(TYPES) - set(REFUSED))
    for title, kinds in (("Extended", extended), ("Refused", sorted(REFUSED)), ("Not tried", sorted(NOT_BUILT))):
        section = text.partition(f"## {title} ({len(kinds)})\n")[2].partition("\n## ")[0]
        assert re.findall(r"`([\w-]+)`", section) == kinds, f"{title}: {', '.join(f'`{kind}`' for kind in kinds)}"
