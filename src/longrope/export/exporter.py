"""An export format, and the request that it writes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from longrope.errors import LongRopeError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from longrope.scaling import Extension


@dataclass(frozen=True)
class ExportOptions:
    """Options of `export` that have a default.

    Args:
        outtype: Type of the stored matrices, for formats that quantise: auto (the model's), f32, f16, q8_0 …
        overwrite: Whether an existing output is replaced.
        check: Whether the output is reopened and compared with the model before it gets its name. A Hugging Face
            checkpoint needs memory for its weights in float32, in a process of its own.
        original_length: L0 of a named model in tokens, where its fields are wrong or disagree; None takes its own.
    """

    outtype: str = "auto"
    overwrite: bool = False
    check: bool = True
    original_length: int | None = None


@dataclass(frozen=True)
class ExportRequest:
    """A model, its factors, and the file or folder to write.

    Args:
        model: Loaded model, or its name as for `longrope.load`.
        tokenizer: Tokenizer of a loaded model; None for a name, which brings its own.
        extension: Factors to write, for the model's rope.
        output: Folder or file to write.
        name: Name of the model for cards and titles.
        mode: ``static`` (the long factors at every length) or ``dual`` (the short ones up to L0).
        dtype: Dtype to load a named model in, as for `longrope.load`.
        options: Options that have a default.
    """

    model: PreTrainedModel | str
    tokenizer: PreTrainedTokenizerBase | None
    extension: Extension
    output: Path
    name: str = "model"
    mode: str = "static"
    dtype: str = "auto"
    options: ExportOptions = ExportOptions()

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Return the model and its tokenizer, loaded if the request names them only, with its adapter merged.

        Raises:
            LongRopeError: There is no such model, or a loaded model came without its tokenizer.
        """
        from longrope.models.adapter import merge_adapter, switched_adapter
        from longrope.models.load import load

        if isinstance(self.model, str):
            model, tokenizer = load(self.model, dtype=self.dtype, original_length=self.options.original_length)
            return merge_adapter(model), self.tokenizer or tokenizer
        if self.tokenizer is None:
            raise LongRopeError("tokenizer = None: a loaded model is exported with its tokenizer. Give both.")
        if switched_adapter(self.model) is not None:
            return merge_adapter(copy.deepcopy(self.model)), self.tokenizer
        return self.model, self.tokenizer


@dataclass(frozen=True)
class Exporter:
    """An export format.

    Args:
        write: Function that writes a request's output and returns the extension as the output holds it.
        summary: Readers of the format, for the command's help.
        folder: Whether the output is a folder; otherwise it is one file.
        compared: Whether ``check`` decides that the output is reopened and compared with the model.
        packages: Packages that the format needs beyond longrope's own dependencies.
        quantizes: Whether the format takes an ``outtype``.
        next_steps: Function from a request and its written extension to the lines that the command prints.
    """

    write: Callable[[ExportRequest], Extension]
    summary: str
    folder: bool = False
    compared: bool = False
    packages: tuple[str, ...] = ()
    quantizes: bool = False
    next_steps: Callable[[ExportRequest, Extension], list[str]] = lambda request, extension: [f"Wrote {request.output}"]
