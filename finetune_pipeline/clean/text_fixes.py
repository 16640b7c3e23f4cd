"""The text fixes, in the order in which they are applied. Each is a function from text to text.

    fix_prompt("<p>IÂ´d like  a refund&nbsp;</p>", html=True)    # ("I´d like a refund", ["encoding", "html", "space"])

All fixes are applied to a prompt. A completion is what the model learns to write, so only its encoding and its control
characters are fixed here; its form is normalized in answers.py. To add a fix, write a function and add it to one of the
tables below with its slug, which is the rule in the ledger.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeAlias

from finetune_pipeline.clean.markup import outside_code, without_markup

_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_CONTROL = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x84\x86-\x9f"  # C0 and C1 except tab, line feed, return, next line
    "\u00ad\u200b\u200e\u200f\u2060-\u2064\ufeff\ufff9-\ufffb"  # soft hyphen, zero width, marks, byte order mark
    "\u202a-\u202e\u2066-\u2069]"  # direction overrides, which can also hide text from readers
)
_LINE_ENDS = re.compile(r"\r\n?|[\x85\u2028\u2029]")
_UNUSUAL_SPACE = re.compile(r"[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_RUN = re.compile(r"(?<=\S)[ \t]{2,}(?=\S)")
_TRAILING = re.compile(r"[ \t]+(?=\n)")
_IRREGULAR = re.compile(r"  |[\t\r]| \n|\n\n\n")  # ASCII text without any of these needs no change
_BLANK_LINES = re.compile(r"\n{3,}")


def fix_encoding(text: str) -> str:
    """Text that was decoded with the wrong encoding ("cafÃ©" for "café"), repaired by ftfy and normalized to NFC.

    Unchanged where ftfy is not certain. Typographic quotes, ligatures and full-width letters are kept.
    """
    if text.isascii():
        return text
    import ftfy

    fixed: str = ftfy.fix_text(
        text,
        unescape_html=False,
        uncurl_quotes=False,
        fix_latin_ligatures=False,
        fix_character_width=False,
        fix_line_breaks=False,
        remove_terminal_escapes=False,
        remove_control_chars=False,
        normalization="NFC",
        explain=False,
    )
    return fixed


def without_control(text: str) -> str:
    """The text without control characters, terminal escapes, zero-width and direction marks.

    Line ends and tabs are kept, and so are the joiners of emoji and several scripts (U+200C, U+200D).
    """
    return _CONTROL.sub("", _ESCAPES.sub("", text)) if _CONTROL.search(text) else text


def normalize_space(text: str) -> str:
    """The text with one kind of white space, none at the ends and no runs; indentation and fenced code unchanged."""
    if text.isascii() and not _IRREGULAR.search(text):
        return text.strip()
    return outside_code(_normalize_space, _LINE_ENDS.sub("\n", text)).strip()


def _normalize_space(text: str) -> str:
    plain = _UNUSUAL_SPACE.sub(" ", text)
    return _BLANK_LINES.sub("\n\n", _TRAILING.sub("", _RUN.sub(" ", plain)))


TextFix: TypeAlias = "tuple[str, Callable[[str], str]]"
# (slug, fix), in the order in which they are applied
COMPLETION_FIXES: tuple[TextFix, ...] = (("encoding", fix_encoding), ("control", without_control))
PROMPT_FIXES: tuple[TextFix, ...] = (*COMPLETION_FIXES, ("html", without_markup), ("space", normalize_space))
_WITHOUT_HTML = tuple(fix for fix in PROMPT_FIXES if fix[0] != "html")


def fix_prompt(text: str, html: bool) -> tuple[str, list[str]]:
    """The fixed prompt, and the slugs of the fixes that changed it. `html`: whether markup is removed."""
    return apply_fixes(text, PROMPT_FIXES if html else _WITHOUT_HTML)


def fix_completion(text: str) -> tuple[str, list[str]]:
    """The fixed completion, and the slugs of the fixes that changed it."""
    return apply_fixes(text, COMPLETION_FIXES)


def apply_fixes(text: str, fixes: Sequence[TextFix]) -> tuple[str, list[str]]:
    """The fixed text, and the slugs of the fixes that changed it."""
    slugs: list[str] = []
    for slug, fix in fixes:
        fixed = fix(text)
        if fixed != text:
            slugs.append(slug)
            text = fixed
    return text, slugs
