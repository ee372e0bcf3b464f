from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import families
import pytest

import longrope as lr
from longrope.evaluation.lm_eval import chooses_by_length, harness
from longrope.evaluation.measurement import Subject

TASK = """
task: rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: word_perplexity}}]
"""


SETS = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "original_max_position_embeddings": 64}
TWO_SETS = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "attention_factor": 1.0, **SETS}


def two_sets(kind: str) -> Subject:
    """Return a model with two sets of factors: an extension of a plain model, or a checkpoint's own."""
    tokenizer: Any = families.tokenizer()
    tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token = "t0", "t1", "t2"
    if kind == "checkpoint":
        model = families.build("llama", rope_parameters=TWO_SETS, max_position_embeddings=256)
        return Subject(model, tokenizer, None)
    model = families.build("llama")
    return Subject(model, tokenizer, lr.Extension.of(lr.Rope.of(model), lr.Scaling([4.0] * 8, length=256)))


def test_which_models_have_factors_by_length() -> None:
    extended = two_sets("extension")
    assert isinstance(extended.scaling, lr.Extension)
    assert chooses_by_length(extended)
    assert chooses_by_length(two_sets("checkpoint"))
    for scaling in (None, extended.scaling.long, replace(extended.scaling, short=extended.scaling.long)):
        assert not chooses_by_length(replace(extended, scaling=scaling))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["extension", "checkpoint"])
def test_scores_do_not_depend_on_the_batch(kind: str, tmp_path: Path) -> None:
    """The harness pads the rows of a batch to one length, so that short texts once got the long factors."""
    pytest.importorskip("lm_eval")
    texts = [" ".join(f"t{3 + (7 * i + size) % 120}" for i in range(size)) for size in (40, 50, 100)]
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    (tmp_path / "rolling.yaml").write_text(TASK.format(data=tmp_path / "texts.jsonl"))
    subject, perplexities = two_sets(kind), []
    for batch in (1, 3):
        samples = harness(["rolling"], folder=tmp_path, batch=batch, length=128)
        ((_, scores),) = samples.measure(subject, [0])
        perplexities.append(scores["rolling"]["word_perplexity"])
    assert perplexities[1] == pytest.approx(perplexities[0], rel=1e-5)
