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

REFUSED = {
    "beam": "the full-attention layers have no RoPE",
    "blt": "count positions in bytes, and others in patches",
    "recurrent_gemma": "every attention layer sees the last 32 tokens alone",
}
NOT_BUILT = {"gemma4_unified_assistant"}  # it reads another model's keys
TYPES = [kind for kind in all_types.causal_types() if kind not in NOT_BUILT]
DOCUMENT = Path(__file__).parents[2] / "docs" / "reference" / "model-types.md"


@pytest.mark.parametrize("kind", TYPES)
@torch.no_grad()
def test_factors_reach_the_type_or_a_reason_is_given(kind: str) -> None:
    model = all_types.build(kind)
    ids = torch.randint(3, all_types.VOCABULARY, (1, 40), generator=torch.Generator().manual_seed(0))
    if kind in REFUSED:
        with pytest.raises(LongRopeError, match=REFUSED[kind]):
            Rope.of(model)
        return
    rope, before = Rope.of(model), model(input_ids=ids, use_cache=False).logits
    with patch(model, scheme("yarn", rope, 2 * rope.original_length)):
        changed = model(input_ids=ids, use_cache=False).logits
    assert not torch.equal(changed, before)
    assert torch.equal(model(input_ids=ids, use_cache=False).logits, before)


def test_the_document_lists_every_type() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    extended = sorted(set(TYPES) - set(REFUSED))
    for title, kinds in (("Extended", extended), ("Refused", sorted(REFUSED)), ("Not built", sorted(NOT_BUILT))):
        section = text.partition(f"## {title} ({len(kinds)})\n")[2].partition("\n## ")[0]
        assert re.findall(r"`([\w-]+)`", section) == kinds, f"{title}: {', '.join(f'`{kind}`' for kind in kinds)}"
