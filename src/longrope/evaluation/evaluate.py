"""Evaluate factors side by side from Python."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from longrope.checks import as_list, check_tokenizer
from longrope.cost.choose_dtype import choose_dtype, recorded_dtype
from longrope.cost.memory_check import Placement, check_pass_memory
from longrope.data.documents import Source, load_documents, source_name
from longrope.data.split import draw_tokens, split_documents
from longrope.errors import LongRopeError
from longrope.evaluation.candidate import Candidate
from longrope.evaluation.losses import check_lengths
from longrope.evaluation.measurement import Corpus, EvalSpec, digest
from longrope.evaluation.options import EvalOptions
from longrope.evaluation.registry import check_spec
from longrope.evaluation.results import EvalResults
from longrope.evaluation.runner import EvalContext, run_evaluation
from longrope.evaluation.sample_store import JOURNAL, SampleStore
from longrope.evaluation.sequences import encode_texts
from longrope.models.load import choose_device, load, load_config
from longrope.models.patch import patch
from longrope.models.peft_model import check_plain_model
from longrope.provenance import provenance
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling, check_rope
from longrope.storage.jsonl import JsonlFile
from longrope.storage.lock import claimed
from longrope.tasks.prompt_sets import make_prompt_sets
from longrope.tasks.registry import task_names
from longrope.units import token_counts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ORIGINAL = "original"
logger = logging.getLogger(__name__)


def evaluate(
    model: PreTrainedModel | str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    candidates: Mapping[str, Scaling | Extension | None] | None = None,
    *,
    lengths: Sequence[int | str] | int | str,
    texts: Sequence[Any] | None = None,
    data: Source | None = None,
    retrieval: Sequence[str] | str = (),
    options: EvalOptions | None = None,
) -> EvalResults:
    """Measure a model with several scalings on the same documents: perplexity by length and position, retrieval.

    Args:
        model: A causal language model, or its name.
        tokenizer: The model's tokenizer; may be left out if the model is given by name.
        candidates: Scalings by name; None is the model as it is. ``original`` is added.
        lengths: Lengths in tokens, or one, such as 32768 or ``"32k"``.
        texts: Test documents: strings, or lists of token ids, each of at least the longest length.
        data: Source of test documents instead of ``texts``, as for `load_documents`: a folder, a file, ``stdlib``, or
            texts. A search on the same data has not seen its test part.
        retrieval: Names of retrieval tasks, or one.
        options: Everything else.

    Raises:
        LongRopeError: If a document has fewer tokens than the longest length, factors do not fit the model, a task
            does not fit at any length, or the output folder cannot be used.
    """
    options = options or EvalOptions()
    options = replace(options, device=choose_device(options.device))
    model = str(model) if isinstance(model, Path) else model
    counts = sorted(set(token_counts("lengths", lengths, 1)))
    check_lengths(counts, max(counts, default=0))
    if not isinstance(model, str):
        check_plain_model(model)
    name = model if isinstance(model, str) else model.config.name_or_path or str(model.config.model_type)
    weights = {} if isinstance(model, str) or options.output is None else {"weights": _fingerprint(model)}
    with nullcontext() if options.output is None else claimed(Path(options.output), overwrite=True):
        model, tokenizer = _opened(model, tokenizer, max(counts), options)
        rows = {row: Candidate(name, scaling) for row, scaling in _scalings(model, candidates or {}, options).items()}
        corpus = _corpus(tokenizer, counts, texts, data, options)
        spec = _spec(tokenizer, counts, corpus, as_list(retrieval), options)
        check_spec(spec, rows)
        source = {"model": name, "dtype": str(model.dtype).removeprefix("torch.")}
        decided = {} if options.original_length is None else {"original_length": options.original_length}
        settings = source | {"data": {corpus.name: corpus.hash}} | decided | weights
        with _sample_store(options, spec, settings) as store:
            evaluation = EvalContext(
                rows, [corpus], spec, Rope.of(model), lambda _: (model, tokenizer), store, options.on_progress
            )
            results = replace(run_evaluation(evaluation), **source, provenance=provenance(str(model.device)))
        if options.output is not None:
            results.save(Path(options.output) / "results.json")
    return results


def _opened(
    model: PreTrainedModel | str, tokenizer: PreTrainedTokenizerBase | None, length: int, options: EvalOptions
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if tokenizer is not None:
        check_tokenizer(tokenizer)
    if isinstance(model, str):
        dtype = _dtype(model, length, options)
        opened, own_tokenizer = load(model, dtype=dtype, device=options.device, original_length=options.original_length)
        return opened, tokenizer or own_tokenizer
    if tokenizer is None:
        raise LongRopeError("tokenizer = None: a loaded model needs its tokenizer. Pass it, or the model's name.")
    if options.original_length is not None:
        raise LongRopeError(
            f"original_length = {options.original_length}: the model is loaded already. "
            "Give it to longrope.load, or the model's name."
        )
    return model, tokenizer


def _fingerprint(model: PreTrainedModel) -> str:
    """Return a fingerprint of a loaded model, whose name alone does not say which weights and factors it has.

    It covers the first numbers of every tensor, and the rope of the config, which `longrope.apply` changes.
    """
    plain = [weights.data for weights in model.parameters() if type(weights.data) is Tensor and not weights.is_meta]
    numbers = [weights.flatten()[:64].float().cpu().numpy().tobytes() for weights in plain]
    rope = repr(getattr(model.config.get_text_config(), "rope_parameters", None))
    return digest(b"".join([*numbers, rope.encode()]))


def _dtype(model: str, length: int, options: EvalOptions) -> str:
    """Return the dtype to load a model in; refuse passes that do not fit into memory."""
    config = load_config(model)

    def check_memory(dtype: str) -> None:
        check_pass_memory(config, length, Placement(dtype, options.device), batch=options.batch)

    recorded = None if options.output is None else recorded_dtype(Path(options.output) / JOURNAL)
    dtype, reason = choose_dtype(options.dtype, config, options.device, check_memory, recorded=recorded)
    check_memory(dtype)
    if reason:
        logger.warning(reason)
    return dtype


def _scalings(
    model: PreTrainedModel, candidates: Mapping[str, Scaling | Extension | None], options: EvalOptions
) -> dict[str, Scaling | Extension | None]:
    """Return the scalings by name; refuse one that does not fit before the first long pass."""
    if not isinstance(candidates, Mapping):
        raise LongRopeError(
            f"candidates = a {type(candidates).__name__}: not scalings by name. Pass a dict like {{'mine': scaling}}."
        )
    for name, scaling in candidates.items():
        if scaling is not None:
            check_rope(scaling, Rope.of(model), f"candidates[{name!r}]")
    scalings = ({ORIGINAL: None} if options.original else {}) | dict(candidates)
    if not scalings:
        raise LongRopeError("candidates = {}: there is nothing to compare. Pass a scaling, or original=True.")
    for scaling in scalings.values():
        with patch(model, scaling):
            pass
    return scalings


def _corpus(
    tokenizer: PreTrainedTokenizerBase,
    lengths: Sequence[int],
    texts: Sequence[Any] | None,
    data: Source | None,
    options: EvalOptions,
) -> Corpus:
    if texts is not None and data is None:
        tokens = encode_texts(texts, tokenizer, lengths)
        return Corpus("texts", tokens, tuple(f"texts[{index}]" for index in range(len(tokens))))
    if texts is not None or data is None:
        raise LongRopeError("texts, data: pass one of them, the test documents or where to draw them from.")
    documents = split_documents(load_documents(data, text_key=options.text_key), seed=options.seed)["test"]
    drawn = draw_tokens(documents, tokenizer, length=max(lengths), count=options.documents)
    return Corpus(source_name(data), drawn.tokens, drawn.names)


def _spec(
    tokenizer: PreTrainedTokenizerBase,
    lengths: Sequence[int],
    corpus: Corpus,
    retrieval: list[str],
    options: EvalOptions,
) -> EvalSpec:
    task_lengths = lengths
    if options.retrieval_lengths is not None:
        task_lengths = sorted(token_counts("retrieval_lengths", options.retrieval_lengths, 1))
    check_lengths(task_lengths, max(lengths))
    names = task_names(retrieval)
    prompts, left_out = make_prompt_sets(
        names,
        task_lengths,
        tokenizer,
        corpus.tokens,
        require_each=names == retrieval,
        trials=options.trials,
        questions=options.questions,
        depths=options.depths,
        seed=options.seed,
        chat=options.chat,
        ruler_data=options.ruler_data,
    )
    for reason in left_out:
        logger.warning("Left out: %s", reason)
    return EvalSpec(
        lengths,
        stride=options.stride,
        key_tokens=options.key_tokens,
        retrieval=prompts,
        questions=options.questions,
        measurements=options.measurements,
        batch=options.batch,
    )


@contextmanager
def _sample_store(options: EvalOptions, spec: EvalSpec, settings: Mapping[str, Any]) -> Iterator[SampleStore]:
    """Yield the store that the folder's journal keeps; without a folder, an empty one."""
    if options.output is None:
        yield SampleStore()
        return
    settings = {
        **settings,
        "lengths": list(spec.lengths),
        "stride": spec.stride,
        "key_tokens": spec.key_tokens,
        "depths": None if options.depths is None else list(options.depths),
        "seed": options.seed,
        "chat": options.chat,
        "ruler_data": options.ruler_data,
    }
    with closing(JsonlFile(Path(options.output) / JOURNAL, settings, subject="an evaluation", resume=True)) as journal:
        yield SampleStore(journal)
