"""Recognizes UTF-16 without a byte order mark, from the beginning of a file.

In UTF-16, line ends, spaces, commas and quotes have a NUL byte next to them. In long Chinese or Japanese rows these
characters are rare, and a byte of many a character equals one of them: such a file is UTF-16 if, decoded so, it has
lines (or is JSON) and hardly any character that does not occur in texts.

    byte_order("where is it?\\n".encode("utf-16-le"))      # "utf-16-le"
"""

from __future__ import annotations

from collections import Counter
from unicodedata import category

CONTROL_SHARE = 0.01  # share of control characters that a text may hold
NUL_SHARE = 0.1  # share of NUL bytes above which a file is not a damaged text
_UNUSUAL = ("Cc", "Cn", "Co", "Cs")  # categories that are rare in texts: control, unassigned, private use, surrogate
_CONTROLS = bytes([*range(0x01, 0x09), *range(0x0E, 0x1B), *range(0x1C, 0x20)])
_STRUCTURE = b'\t\n\r ",:;{}'  # what separates fields and words, in any script


def byte_order(head: bytes) -> str | None:
    """The name "utf-16-le" or "utf-16-be" for the beginning of such a file without a mark; None for any other."""
    if b"\0" not in head or head[: len(head) & ~3].count(b"\0\0\0"):  # the latter: UTF-32, or not a text
        return None
    orders = (("utf-16-le", 0), ("utf-16-be", 1))
    return next((name for name, low in orders if _is_utf16(head, name, low)), None)


def _is_utf16(head: bytes, order: str, low: int) -> bool:
    """Whether the characters in this byte order are those of a text, in fields or in lines.

    In the wrong order, and in files that are not texts, several characters in a hundred are unusual.
    """
    text = head[: len(head) & ~1].decode(order, "surrogatepass")
    unusual = sum(n for char, n in Counter(text).items() if category(char) in _UNUSUAL and char not in "\t\n\r")
    if _has_structure(head, low):
        return unusual <= NUL_SHARE * len(text)
    return unusual <= CONTROL_SHARE * len(text) and _has_lines(head, text)


def _has_structure(head: bytes, low: int) -> bool:
    """Whether most characters of structure, at position `low` of their byte pair, have a NUL at the other position."""
    even = head[: len(head) & ~1]
    low_bytes, high_bytes = even[low::2], even[1 - low :: 2]
    has_nul = [high == 0 for byte, high in zip(low_bytes, high_bytes, strict=True) if byte in _STRUCTURE]
    return 2 * sum(has_nul) > len(has_nul)


def _has_lines(head: bytes, text: str) -> bool:
    """Whether the text has a line end or is JSON, and the head is not a single-byte text with a few NULs in it.

    In such a text most bytes of line ends and spaces have no NUL next to them, and control characters are rare. In
    UTF-16 a byte of that kind is half of another character (上 is U+4E0A), and such halves are as often a control
    character (U+4E01 to U+4E08): at least one for every two of these bytes.
    """
    alone = sum(head.count(char.encode()) - text.count(char) for char in "\n ")
    controls = count_controls(head)
    return alone <= 2 * controls and (text.startswith(("[", "{")) or "\n" in text or "\r" in text)


def count_controls(head: bytes) -> int:
    """How many bytes are control characters; not NUL, frequent in UTF-16, nor those that terminals use."""
    return len(head) - len(head.translate(None, _CONTROLS))
