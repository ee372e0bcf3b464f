"""Long documents from a folder, a file, ``.jsonl``, ``.parquet`` or the running Python's standard library."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from longrope.data.stdlib import stdlib_documents
from longrope.errors import LongRopeError


@dataclass(frozen=True)
class Document:
    """One text and where it came from."""

    name: str
    text: str


def load_documents(source: str) -> list[Document]:
    """All distinct documents of a source, in a fixed order.

    Args:
        source: ``stdlib`` (the running Python's library, one document a package), ``stdlib:unseen`` (the part that
            the model ``tiny`` was not trained on), a text file, a ``.jsonl`` file (key ``text``), a ``.parquet``
            file (column ``text``), or a folder of such files, searched through; files in it that are no UTF-8
            text, or hidden, are passed over.

    Raises:
        LongRopeError: if the source does not exist, cannot be read or holds no text.
    """
    try:
        found = list(_found(source))
    except OSError as error:
        where = error.filename or source
        raise LongRopeError(f"data = {str(where)!r} cannot be read: {error.strerror}; give another") from None
    distinct = {document.text: document for document in found if document.text.strip()}
    if not distinct:
        raise LongRopeError(f"data = {source!r} holds no text; give a folder of text files, .jsonl or .parquet")
    return list(distinct.values())


def _found(source: str) -> Iterator[Document]:
    if source in ("stdlib", "stdlib:unseen"):
        yield from (Document(*pair) for pair in stdlib_documents(unseen=source == "stdlib:unseen"))
    elif source and Path(source).is_dir():  # Path("") is the working folder
        yield from _folder(Path(source))
    elif Path(source).is_file():
        yield from _file(Path(source))
    else:
        raise LongRopeError(f"data = {source!r}: there is no such file or folder (or use stdlib)")


def _folder(folder: Path) -> Iterator[Document]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            try:
                yield from _file(path)
            except LongRopeError:
                if path.suffix in (".jsonl", ".parquet"):
                    raise


def _file(path: Path) -> Iterator[Document]:
    if path.suffix == ".parquet":
        yield from _parquet(path)
        return
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise LongRopeError(f"data = {str(path)!r} is no UTF-8 text; give text files, .jsonl or .parquet")
    if path.suffix == ".jsonl":
        yield from _jsonl(path, text)
    else:
        yield Document(str(path), text)


def _jsonl(path: Path, text: str) -> Iterator[Document]:
    for number, line in enumerate(text.rstrip("\n").split("\n"), start=1):
        try:
            content = json.loads(line)["text"]
            if not isinstance(content, str):
                raise TypeError
            content.encode()
        except UnicodeEncodeError as error:
            raise LongRopeError(
                f'{path}, line {number}: "text" holds half a character ({error.object[error.start]!a}, number '
                f"{error.start + 1}), which no tokenizer takes; remove it"
            ) from None
        except (ValueError, KeyError, TypeError, RecursionError):
            raise LongRopeError(f'{path}, line {number}: expected a JSON object with a string "text"') from None
        yield Document(f"{path}:{number}", content)


def _parquet(path: Path) -> Iterator[Document]:
    try:
        import pyarrow.parquet  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise LongRopeError(f"data = {str(path)!r} needs the package pyarrow: pip install pyarrow") from None
    try:
        column = pyarrow.parquet.read_table(path, columns=["text"]).column("text").to_pylist()
    except (OSError, KeyError, IndexError, pyarrow.ArrowException) as error:
        raise LongRopeError(f'data = {str(path)!r} is no parquet file with a column "text": {error}') from None
    yield from (Document(f"{path}:{row}", str(text)) for row, text in enumerate(column, start=1) if text)
