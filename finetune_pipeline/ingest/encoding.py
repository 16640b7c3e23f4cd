"""Which encoding a text file has, and how to read it without losing a byte.

UTF-8 is the rule (with or without a byte order mark); UTF-16 and UTF-32 are known by theirs, UTF-16 without one by
its line ends, spaces, commas and quotes, each of which has a NUL byte beside it. In long Chinese or Japanese rows these
are rare, and half of many a character is the same byte as one of them: such a file is UTF-16 if, read so, it has lines
(or is JSON) and hardly any character that no text holds. A file that is UTF-8 but for a few odd bytes (two exports
pasted together) stays UTF-8: each odd byte is read as Windows-1252, which is what it nearly always was. Only a file
that is not UTF-8 at all is given to charset-normalizer.

What it is not: the fixing of texts that were decoded wrongly before they came here ("Ã¼"): that is clean/text_fixes.py.

    detect(Path("old.csv"))      # "utf-8", "utf-8-sig", "utf-16", "cp1252", ...
    open_text(path, encoding)    # text, line ends untouched, as the csv module wants it
    lines(file)                  # its lines; one of 200 MB is read past, not held
"""

from __future__ import annotations

import codecs
import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import IO, cast
from unicodedata import category

from upath import UPath

from finetune_pipeline.errors import DataError
from finetune_pipeline.ingest import rows

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_PIECE = 1 << 20
_HEAD = 1 << 16
_CONTROL = re.compile(rb"[\x01-\x08\x0e-\x1a\x1c-\x1f]")  # not NUL, of which UTF-16 is full, nor what terminals use
_FEW = 0.01  # share of control characters that a text may hold
_FOREIGN = ("Cc", "Cn", "Co", "Cs")  # categories that a text hardly holds: control, unassigned, private, surrogate
_STRUCTURE = b'\t\n\r ",:;{}'  # what separates fields and words, in any script
_MANY = 0.1  # share of NUL bytes that no damage to a text explains
_SAMPLE = 1 << 18  # charset-normalizer needs no more, and is slow
_CLOSE = 0.1  # difference of charset-normalizer's figures that says nothing
_NO_LEAD = bytes(range(0xC2))  # in UTF-8, a byte from here on begins a character of several
_ESCAPED = re.compile("[\udc80-\udcff]")  # a byte that fits nowhere, as surrogateescape has it
ODD_BYTES = "finetune.odd-bytes"


def _odd_bytes(error: UnicodeError) -> tuple[str, int]:
    """Codec error handler: bytes that are no UTF-8 are read as Windows-1252 (Latin-1 where that has a gap)."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    odd = error.object[error.start : error.end]
    text = "".join(bytes([b]).decode("cp1252", "ignore") or chr(b) for b in odd)
    return text, error.end


codecs.register_error(ODD_BYTES, _odd_bytes)


def open_text(path: UPath, encoding: str) -> IO[str]:
    """The file as text, line ends untouched."""
    errors = ODD_BYTES if encoding.startswith("utf-8") else "replace"
    raw = cast(IO[bytes], path.open("rb"))
    return io.TextIOWrapper(raw, encoding=encoding, errors=errors, newline="")


class LongLine(str):
    """Stands for a line beyond rows.MAX_CHARS: its beginning, its length and its hash, the same for the same line."""


def lines(file: IO[str]) -> Iterator[str]:
    """The lines of a text, with their ends. One that is too long is a LongLine, and never in memory as a whole."""
    limit = rows.MAX_CHARS
    for line in iter(partial(file.readline, limit), ""):
        yield line if len(line) < limit else _long_line(file, line, limit)


def _long_line(file: IO[str], line: str, limit: int) -> LongLine:
    digest, length, piece = hashlib.sha256(), 0, line
    while piece:
        digest.update(piece.encode("utf-8", "surrogatepass"))
        length += len(piece)
        piece = "" if piece.endswith(("\n", "\r")) else file.readline(limit)
    return LongLine(f"{line[:80]}… {length} characters, sha256 {digest.hexdigest()}")


def detect(path: UPath) -> str:
    """Name of the file's encoding. Reads the whole file once, in pieces. DataError for what is no text at all."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    by_head = of_head(head)
    if by_head:
        return by_head
    if head.count(0) > _MANY * len(head):
        raise DataError(
            f"{path} is no text: of its first {len(head)} bytes, {head.count(0)} are NUL",
            "export it again as UTF-8, or set the source's `encoding` (utf-16-le? utf-32?) or `format` to what it is",
        )
    controls = len(_CONTROL.findall(head))
    if controls > _FEW * len(head):
        raise DataError(
            f"{path} is no text: of its first {len(head)} bytes, {controls} are control characters",
            "unpack or export it again, or set the source's `format` or `encoding` (utf-16-le?) to what it is",
        )
    good, odd, sample = 0, 0, bytearray()
    for line in (line for piece in pieces(path) for line in piece.split(b"\n") if not line.isascii()):
        multibyte, broken = _census(line)
        good, odd = good + multibyte, odd + broken
        if broken and len(sample) < _SAMPLE:
            sample += line[:_SAMPLE]
    if odd == 0 or good > odd:
        return "utf-8"
    return _guess(bytes(sample))


def of_head(head: bytes) -> str | None:
    """The encoding that the beginning of a file shows: by its mark, or UTF-16 without one; None for any other."""
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    if b"\0" not in head or head[: len(head) & ~3].count(b"\0\0\0"):  # the latter: UTF-32, or no text
        return None
    orders = (("utf-16-le", 0), ("utf-16-be", 1))
    return next((name for name, first in orders if _is_utf16(head, name, first)), None)


def _is_utf16(head: bytes, order: str, first: int) -> bool:
    """Whether the characters in this order of bytes are those of a text, in fields or in lines.

    In the wrong order, and in files that are no text, several in a hundred characters are none.
    """
    text = head[: len(head) & ~1].decode(order, "surrogatepass")
    foreign = sum(n for char, n in Counter(text).items() if category(char) in _FOREIGN and char not in "\t\n\r")
    if _has_structure(head, first):
        return foreign <= _MANY * len(text)
    return foreign <= _FEW * len(text) and _has_lines(head, text)


def _has_structure(head: bytes, first: int) -> bool:
    """Whether most characters of structure have a NUL in the byte of their pair that is not the `first` one."""
    even = head[: len(head) & ~1]
    low, high = even[first::2], even[1 - first :: 2]
    beside = [zero == 0 for byte, zero in zip(low, high, strict=True) if byte in _STRUCTURE]
    return 2 * sum(beside) > len(beside)


def _has_lines(head: bytes, text: str) -> bool:
    """Whether the text has a line end or is JSON, and the head is no text of single bytes with a few NULs in it.

    In such a text most bytes of line ends and spaces have no NUL beside them, and control characters are rare. In
    UTF-16 a byte of that kind is half of another character (上 is U+4E0A), and such halves are as often a control
    character (U+4E01 to U+4E08): at least one for every two of these bytes.
    """
    alone = sum(head.count(char.encode()) - text.count(char) for char in "\n ")
    controls = len(_CONTROL.findall(head))
    return alone <= 2 * controls and (text.startswith(("[", "{")) or "\n" in text or "\r" in text)


def pieces(path: UPath) -> Iterator[bytes]:
    """The file in pieces that end with a line, or, where a line is longer than a piece, with a whole character."""
    with path.open("rb") as file:
        rest = b""
        while piece := file.read(_PIECE):
            piece = rest + piece
            cut = piece.rfind(b"\n") + 1 or _whole_characters(piece)
            rest = piece[cut:]
            yield piece[:cut]
        if rest:
            yield rest


def _whole_characters(piece: bytes) -> int:
    """The length of a piece without the UTF-8 character that its end cuts through."""
    for back in range(1, min(4, len(piece)) + 1):
        byte = piece[-back]
        if byte & 0xC0 != 0x80:  # no continuation: a character begins here
            return len(piece) - back if byte >= 0xC2 else len(piece)
    return len(piece)


def _census(line: bytes) -> tuple[int, int]:
    """How many characters of several bytes are right, and how many bytes belong to none."""
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        escaped = line.decode("utf-8", "surrogateescape")
        return _leads(escaped.encode("utf-8", "ignore")), len(_ESCAPED.findall(escaped))
    return _leads(line), 0


def _leads(valid: bytes) -> int:
    return len(valid.translate(None, _NO_LEAD))


def _guess(sample: bytes) -> str:
    from charset_normalizer import from_bytes

    matches = from_bytes(sample)
    best = matches.best()
    western = next((m for m in matches if m.encoding == "cp1252" or "cp1252" in m.could_be_from_charset), None)
    if best is None or (
        western and western.chaos <= best.chaos + _CLOSE and western.coherence >= best.coherence - _CLOSE
    ):
        return "cp1252"  # as likely as any, and by far the most frequent
    return best.encoding
