"""Detects the encoding of a text file, and reads it without losing a byte.

Most files are UTF-8, with or without a byte order mark. UTF-16 and UTF-32 are recognized by their marks, UTF-16 also
without one (utf16.py). A file that is UTF-8 but for a few invalid bytes (two exports pasted together) is read as UTF-8,
and each invalid byte as Windows-1252, which it nearly always is. Only a file that is not UTF-8 at all is passed to
charset-normalizer. Texts that were decoded wrongly before they were saved ("Ã¼") are fixed in clean/text_fixes.py.

    detect(UPath("old.csv"))     # "utf-8", "utf-8-sig", "utf-16", "cp1252", ...
    open_text(path, encoding)    # a text file, line ends unchanged, as the csv module needs it
    lines(file)                  # its lines; a line of 200 MB is skipped in pieces, not held in memory
"""

from __future__ import annotations

import codecs
import hashlib
import io
import re
from collections.abc import Iterator
from functools import partial
from typing import IO, cast

from upath import UPath

from finetune_pipeline.errors import DataError
from finetune_pipeline.ingest import rows
from finetune_pipeline.ingest.utf16 import CONTROL_SHARE, NUL_SHARE, byte_order, count_controls

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CHUNK_BYTES = 1 << 20
HEAD_BYTES = 1 << 16  # from which encoding and format are recognized
_SAMPLE_BYTES = 1 << 18  # charset-normalizer needs no more, and is slow
_CLOSE = 0.1  # a difference of charset-normalizer's figures that is not significant
_NO_LEAD = bytes(range(0xC2))  # in UTF-8, a byte from 0xC2 on begins a character of several bytes
_ESCAPED = re.compile("[\udc80-\udcff]")  # an invalid byte, as surrogateescape decodes it
INVALID_BYTES = "finetune.invalid-bytes"


def _decode_invalid(error: UnicodeError) -> tuple[str, int]:
    """Codec error handler: bytes that are not UTF-8 are read as Windows-1252 (Latin-1 where that has a gap)."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    invalid = error.object[error.start : error.end]
    text = "".join(bytes([b]).decode("cp1252", "ignore") or chr(b) for b in invalid)
    return text, error.end


codecs.register_error(INVALID_BYTES, _decode_invalid)


def open_text(path: UPath, encoding: str) -> IO[str]:
    """The file as text, line ends unchanged."""
    errors = INVALID_BYTES if encoding.startswith("utf-8") else "replace"
    raw = cast(IO[bytes], path.open("rb"))
    return io.TextIOWrapper(raw, encoding=encoding, errors=errors, newline="")


class LongLine(str):
    """Replaces a line beyond rows.MAX_CHARS: its beginning, its length and its hash, equal for equal lines."""


def lines(file: IO[str]) -> Iterator[str]:
    """The lines of a text, with their ends. One that is too long is a LongLine, and never in memory as a whole."""
    limit = rows.MAX_CHARS
    for line in iter(partial(file.readline, limit), ""):
        yield line if len(line) < limit else _long_line(file, line, limit)


def _long_line(file: IO[str], line: str, limit: int) -> LongLine:
    digest, length, chunk = hashlib.sha256(), 0, line
    while chunk:
        digest.update(chunk.encode("utf-8", "surrogatepass"))
        length += len(chunk)
        chunk = "" if chunk.endswith(("\n", "\r")) else file.readline(limit)
    return LongLine(f"{line[:80]}… {length} characters, sha256 {digest.hexdigest()}")


def encoding_of(path: UPath, declared: str) -> str:
    """The declared encoding; for `auto` the detected one. DataError as `detect`."""
    return detect(path) if declared == "auto" else declared


def detect(path: UPath) -> str:
    """The file's encoding. Reads the whole file once, in chunks. DataError for a file that is not a text."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    by_head = of_head(head)
    if by_head:
        return by_head
    _check_text(path, head)
    multibyte, invalid, sample = 0, 0, bytearray()
    for line in (line for chunk in chunks(path) for line in chunk.split(b"\n") if not line.isascii()):
        line_multibyte, line_invalid = _count_bytes(line)
        multibyte, invalid = multibyte + line_multibyte, invalid + line_invalid
        if line_invalid and len(sample) < _SAMPLE_BYTES:
            sample += line[:_SAMPLE_BYTES]
    if invalid == 0 or multibyte > invalid:
        return "utf-8"
    return _guess(bytes(sample))


def _check_text(path: UPath, head: bytes) -> None:
    nuls, controls = head.count(0), count_controls(head)
    if nuls > NUL_SHARE * len(head):
        raise DataError(
            f"{path} is no text: of its first {len(head)} bytes, {nuls} are NUL",
            "export it again as UTF-8, or set the source's `encoding` (utf-16-le? utf-32?) or `format` to what it is",
        )
    if controls > CONTROL_SHARE * len(head):
        raise DataError(
            f"{path} is no text: of its first {len(head)} bytes, {controls} are control characters",
            "unpack or export it again, or set the source's `format` or `encoding` (utf-16-le?) to what it is",
        )


def of_head(head: bytes) -> str | None:
    """The encoding that the beginning of a file shows: by its mark, or UTF-16 without one; None for any other."""
    return next((name for mark, name in _MARKS if head.startswith(mark)), None) or byte_order(head)


def chunks(path: UPath) -> Iterator[bytes]:
    """The file in chunks that end with a line, or, where a line is longer than a chunk, with a whole character."""
    with path.open("rb") as file:
        rest = b""
        while chunk := file.read(_CHUNK_BYTES):
            chunk = rest + chunk
            cut = chunk.rfind(b"\n") + 1 or _whole_characters(chunk)
            rest = chunk[cut:]
            yield chunk[:cut]
        if rest:
            yield rest


def _whole_characters(chunk: bytes) -> int:
    """The length of a chunk without the UTF-8 character that its end cuts through."""
    for back in range(1, min(4, len(chunk)) + 1):
        byte = chunk[-back]
        if byte & 0xC0 != 0x80:  # no continuation byte: a character begins here
            return len(chunk) - back if byte >= 0xC2 else len(chunk)
    return len(chunk)


def _count_bytes(line: bytes) -> tuple[int, int]:
    """(valid characters of several bytes, invalid bytes) of a line read as UTF-8."""
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        escaped = line.decode("utf-8", "surrogateescape")
        return _count_leads(escaped.encode("utf-8", "ignore")), len(_ESCAPED.findall(escaped))
    return _count_leads(line), 0


def _count_leads(valid: bytes) -> int:
    return len(valid.translate(None, _NO_LEAD))


def _guess(sample: bytes) -> str:
    from charset_normalizer import from_bytes

    matches = from_bytes(sample)
    best = matches.best()
    western = next((m for m in matches if m.encoding == "cp1252" or "cp1252" in m.could_be_from_charset), None)
    if best is None or (
        western and western.chaos <= best.chaos + _CLOSE and western.coherence >= best.coherence - _CLOSE
    ):
        return "cp1252"  # as likely as any other, and by far the most frequent
    return best.encoding
