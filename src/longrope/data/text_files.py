"""Bytes of a file to text: byte order marks, other encodings, and files that hold something else."""

from __future__ import annotations

from longrope.errors import LongRopeError

# of UTF-32 before UTF-16, which begins with the same bytes
MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
OTHER_KINDS = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstandard",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"PK\x03\x04": "zip (also .docx, .epub)",
    b"%PDF-": "PDF",
    b"{\\rtf": "RTF",
    b"ARROW1": "Arrow",
}


class UnreadableFileError(LongRopeError):
    """A file without text that longrope can read.

    Args:
        path: Path of the file.
        reason: Reason in a few words, by which files are counted.
        remedy: Advice in a sentence.
    """

    def __init__(self, path: object, reason: str, remedy: str) -> None:
        super().__init__(f"data = {str(path)!r}: {reason}. {remedy}")
        self.reason = reason


def decode(data: bytes, path: object) -> str:
    """Return the text of a file without a byte order mark.

    Args:
        data: Content of the file: UTF-8, or UTF-16 or UTF-32 with a byte order mark.
        path: Path of the file, for the error.

    Raises:
        UnreadableFileError: The content is in another encoding, compressed or binary.
    """
    for start, kind in OTHER_KINDS.items():
        if data.startswith(start):
            raise UnreadableFileError(path, f"not UTF-8 text but {kind}", "Extract its text into a file first.")
    encoding = next((name for mark, name in MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        remedy = "Convert it (iconv -f CP1252 -t UTF-8), or give text files, .jsonl or .parquet."
        raise UnreadableFileError(path, "not UTF-8 text", remedy) from None
    if "\0" in text:
        remedy = (
            "It holds zero bytes: binary, or UTF-16 without a byte order mark. Give text files, .jsonl or .parquet."
        )
        raise UnreadableFileError(path, "not UTF-8 text", remedy)
    return text.replace("\r\n", "\n").replace("\r", "\n")
