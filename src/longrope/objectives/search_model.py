"""`longrope.search`: search the factors of a model, or of a function, for one length."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from longrope.checks import check_tokenizer
from longrope.data.documents import Source
from longrope.data.stdlib import default_data
from longrope.errors import LongRopeError
from longrope.models.layer_survey import require_rotating_layers
from longrope.models.load import choose_device, load_config
from longrope.models.weights_digest import weights_setting
from longrope.objectives.backend import backend_of, open_backend, processes
from longrope.objectives.placement import place_search
from longrope.objectives.prepare_search import (
    Function,
    PreparedSearch,
    check_starts,
    prepare_function,
    prepare_search,
)
from longrope.rope import Rope
from longrope.search import JOURNAL
from longrope.search.method import Method
from longrope.search.options import SearchOptions
from longrope.search.protocol import FunctionObjective
from longrope.search.run import SearchResult
from longrope.storage.lock import claimed, refuse_other_files, refuse_staged_run
from longrope.units import token_count

logger = logging.getLogger(__name__)


def search(
    model: str | Path | PreTrainedModel | Function | FunctionObjective,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    length: int | str,
    data: Source | None = None,
    rope: Rope | None = None,
    method: str | Method | None = None,
    output: str | Path | None = None,
    options: SearchOptions | None = None,
) -> SearchResult:
    """Search the factors of one length, with the defaults of ``longrope search``.

    Args:
        model: A model's name, a loaded model with its tokenizer, or a function from a `Scaling` to a loss. A function
            with a gradient is a `FunctionObjective`.
        tokenizer: Tokenizer of a loaded model.
        length: Target length in tokens, such as 32768 or ``"32k"``.
        data: Documents as for `load_documents`, also a list of texts; None for this Python's library.
        rope: Geometry of the model, for a function; or the model or its config.
        method: A key of `METHODS` or a method; None for ``auto``, or ``cma`` for a function without a gradient.
        output: Folder of the run, which can be resumed; None keeps no files.
        options: Other settings; None for the defaults.

    Raises:
        LongRopeError: If the model, the data, the settings or the output folder cannot be used, or no candidate has a
            finite loss.
    """
    options = options or SearchOptions()
    model = str(model) if isinstance(model, Path) else model
    options = replace(options, device=_device(model, options))
    tokens = token_count("length", length, 1)
    run = TemporaryDirectory() if output is None else _claimed(Path(output), options.existing)
    with run as name:
        folder = Path(name)
        with _prepared(model, tokenizer, tokens, data, rope, method, options, folder) as prepared:
            result = prepared.find(folder)
        if output is not None:
            prepared.save(folder, result, options.device)
    return result


def _claimed(folder: Path, existing: str) -> AbstractContextManager[Path]:
    """Return the context in which no other process writes into the folder of a search."""
    if existing != "refuse":
        refuse_staged_run(folder)
        refuse_other_files(folder, JOURNAL, "a search")
    return claimed(folder, overwrite=existing != "refuse")


def _device(model: object, options: SearchOptions) -> str:
    """Return the device of a loaded model, the chosen one for a model's name, and ``cpu`` for a function."""
    if isinstance(model, PreTrainedModel):
        return str(model.device)
    if not isinstance(model, str):
        return "cpu"
    return choose_device(options.device) if processes(options.workers) else options.device  # workers on Ray choose


@contextmanager
def _prepared(
    model: str | PreTrainedModel | Function | FunctionObjective,
    tokenizer: PreTrainedTokenizerBase | None,
    length: int,
    data: Source | None,
    rope: Rope | None,
    method: str | Method | None,
    options: SearchOptions,
    output: Path,
) -> Iterator[PreparedSearch]:
    if options.original_length is not None and not isinstance(model, str):
        raise LongRopeError(
            f"original_length = {options.original_length}: the model is loaded already, or is a function. "
            "Give it to longrope.load or as rope, or give the model's name."
        )
    if not isinstance(model, (str, PreTrainedModel)):
        is_function = callable(model) and not isinstance(model, (nn.Module, PreTrainedTokenizerBase))
        if not (is_function or isinstance(model, FunctionObjective)):
            raise LongRopeError(
                f"model = a {type(model).__name__}: not searched. Give a model's name, a PreTrainedModel with its "
                "tokenizer (of a PeftModel, its base with the adapter merged), or a function from a Scaling to a loss."
            )
        yield prepare_function(model, rope, length, method, options)
        return
    chosen = options.method(method or "auto", length)
    config = _checked_config(model, length, chosen, options)
    if isinstance(model, str):
        name, fingerprint = model, weights_setting(model)
        options, reason = place_search(config, length, chosen, options, output)
        if reason:
            logger.warning(reason)
        opened = open_backend(
            model,
            dtype=options.dtype,
            device=options.device,
            workers=options.workers,
            original_length=options.original_length,
        )
    else:
        if tokenizer is None:
            raise LongRopeError("tokenizer = None: a loaded model needs its tokenizer. Give it, or the model's name.")
        check_tokenizer(tokenizer)
        if options.workers != "1":
            raise LongRopeError(f"workers = {options.workers}: a loaded model has no workers. Give the model's name.")
        name = str(model.name_or_path) or type(model).__name__
        backend, fingerprint = backend_of(model, tokenizer)
        opened = nullcontext(backend)
    source = default_data(name) if data is None else data
    with opened as backend:
        settings = {"model": name, **fingerprint}
        yield prepare_search(
            backend, length, data=source, method=chosen, options=options, settings=settings, output=output
        )


def _checked_config(
    model: str | PreTrainedModel, length: int, method: Method, options: SearchOptions
) -> PreTrainedConfig:
    """Return the config of a model, and refuse what it and the options alone show to be impossible."""
    options.text_spec(length)
    config = load_config(model, original_length=options.original_length) if isinstance(model, str) else model.config
    warning = require_rotating_layers(config).warning(length)
    if warning is not None:
        logger.warning(warning)
    check_starts(Rope.of(config if isinstance(model, str) else model), length, method, options)
    return config
