"""Which encoding a text file has, and how to read it without losing a byte.

UTF-8 is the rule (with or without a byte order mark); UTF-16 and UTF-32 are known by theirs. A file that is UTF-8 but
for a few odd bytes (two exports pasted together) stays UTF-8: each odd byte is read as Windows-1252, which is what it
nearly always was. Only a file that is not UTF-8 at all is given to charset-normalizer.

What it is not: the mending of texts that were decoded wrongly before they came here ("Ã¼"): that is clean/mojibake.py.

    detect(Path("old.csv"))      # "utf-8", "utf-8-sig", "utf-16", "cp1252", ...
    open_text(path, encoding)    # text, line ends untouched, as the csv module wants it
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from typing import IO, cast

from upath import UPath

from finetune_pipeline.errors import DataError

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
_FEW = 0.01  # control characters that a text may hold
_SAMPLE = 1 << 18  # charset-normalizer needs no more, and is slow
_CLOSE = 0.1  # difference of charset-normalizer's figures that says nothing
_MULTIBYTE = re.compile(rb"[\xc2-\xf4][\x80-\xbf]{1,3}")
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


def detect(path: UPath) -> str:
    """Name of the file's encoding. Reads the whole file once, in pieces. DataError for what is no text at all."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    controls = len(_CONTROL.findall(head))
    if controls > _FEW * len(head):
        raise DataError(
            f"{path} is no text: of its first {len(head)} bytes, {controls} are control characters",
            "unpack or export it again, or set the source's `format` or `encoding` to what it is",
        )
    good, odd, sample = 0, 0, bytearray()
    for line in _lines_beyond_ascii(path):
        multibyte, broken = _census(line)
        good, odd = good + multibyte, odd + broken
        if broken and len(sample) < _SAMPLE:
            sample += line
    if odd == 0 or good > odd:
        return "utf-8"
    return _guess(bytes(sample))


def _lines_beyond_ascii(path: UPath) -> Iterator[bytes]:
    with path.open("rb") as file:
        rest = b""
        while piece := file.read(_PIECE):
            *whole, rest = (rest + piece).split(b"\n")
            yield from (line for line in whole if not line.isascii())
        if not rest.isascii():
            yield rest


def _census(line: bytes) -> tuple[int, int]:
    """How many characters of several bytes are right, and how many bytes belong to none."""
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        escaped = line.decode("utf-8", "surrogateescape")  # a byte that fits nowhere becomes U+DC80..U+DCFF
        odd = sum(0xDC80 <= ord(c) <= 0xDCFF for c in escaped)
        return len(_MULTIBYTE.findall(escaped.encode("utf-8", "ignore"))), odd
    return len(_MULTIBYTE.findall(line)), 0


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
