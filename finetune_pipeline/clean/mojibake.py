"""Texts that were once decoded with the wrong encoding: "cafÃ©" is "café" again. The work is ftfy's.

What it is not: a change of anything that is right. Typographic quotes, ligatures and full-width letters stay, and HTML
is markup.py's. Unicode is brought to NFC, so that one letter is written in one way.
"""

from __future__ import annotations


def mend_encoding(text: str) -> str:
    """The text as its author wrote it; unchanged where ftfy is not certain."""
    if text.isascii():
        return text
    import ftfy

    mended: str = ftfy.fix_text(
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
    return mended
