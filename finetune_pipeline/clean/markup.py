"""Removes HTML from a text: tags, comments and entities; the text inside is kept, and blocks become lines.

Only unambiguous HTML is removed: a known tag, closed, with well-formed attributes; an entity with its semicolon.
"a < b and c > d", "I <3 it", generics such as List<String> and code between backticks are unchanged.

    without_markup("<p>Hi,<br>my order &amp; refund?</p>")    # "Hi,\\nmy order & refund?"
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable

_CODE = re.compile(r"(```.*?```|`[^`\n]+`)", re.DOTALL)
_BLOCKS = "p|div|br|hr|tr|li|ul|ol|table|tbody|thead|h[1-6]|blockquote|section|article|header|footer|pre|center"
_INLINE = "span|a|b|i|u|em|strong|small|font|img|td|th|sup|sub|code|o:p|label|html|body|head|meta|title|link|tt"
_HIDDEN = "script|style"
_NAMES = f"{_BLOCKS}|{_INLINE}|{_HIDDEN}"
_ATTRIBUTE = r"\s+[A-Za-z_:][\w:.-]*\s*=\s*(?:\"[^\"<>]*\"|'[^'<>]*'|[^\s\"'<>=]+)"
_TAG = re.compile(
    rf"<(?:/(?:{_NAMES})\s*|(?:{_NAMES})(?:{_ATTRIBUTE})*\s*/?)>|<!--.*?-->|<!DOCTYPE[^<>]*>", re.I | re.S
)
_ENTITY = re.compile(r"&(?:[A-Za-z][A-Za-z0-9]{1,7}|#\d{1,7}|#[xX][0-9A-Fa-f]{1,6});")
_ROUNDS = 4
_MARK = "\ue000"  # where a block begins or ends (private use, so that it does not occur in texts)
_BOUNDARY = re.compile(rf"\s*{_MARK}[\s{_MARK}]*")
_BLOCK_NAME = re.compile(rf"(?:{_BLOCKS})\Z", re.I)


def without_markup(text: str) -> str:
    """The text without HTML. Doubly escaped text is unescaped twice, so that a second call changes nothing."""
    for _ in range(_ROUNDS):
        plain = _once(text)
        if plain == text:
            break
        text = plain
    return text


def outside_code(rule: Callable[[str], str], text: str) -> str:
    """The text with `rule` applied to all parts that are not code between backticks.

    outside_code(str.upper, "use `a < b` here")    # "USE `a < b` HERE"
    """
    if "`" not in text:
        return rule(text)
    parts = _CODE.split(text)
    return "".join(part if number % 2 else rule(part) for number, part in enumerate(parts))


def _once(text: str) -> str:
    if "<" not in text and "&" not in text:
        return text
    plain = outside_code(_plain, text)
    return _BOUNDARY.sub("\n", plain).strip("\n") if _MARK in plain else plain


def _plain(text: str) -> str:
    tags = _tags(text)
    if not tags:
        return _ENTITY.sub(lambda match: html.unescape(match[0]), text)
    from bs4 import BeautifulSoup, Comment

    soup = BeautifulSoup(_protected(text, tags), "html.parser")
    for hidden in soup(["script", "style"]):
        hidden.decompose()
    for comment in soup.find_all(string=lambda node: isinstance(node, Comment)):
        comment.extract()
    for block in soup.find_all(_BLOCK_NAME):
        block.insert_before(_MARK)
        block.insert_after(_MARK)
    return soup.get_text()


def _tags(text: str) -> list[re.Match[str]]:
    """All unambiguous tags. One letter in angle brackets is one only if it is also closed: "if a <b> c"."""
    candidates = list(_TAG.finditer(text))
    opened = {_name(match) for match in candidates if match[0][1] != "/"}
    closed = {_name(match) for match in candidates if match[0][1] == "/"}
    certain = (opened & closed) | {"p"}
    return [match for match in candidates if len(_name(match)) > 1 or _name(match) in certain]


def _name(tag: re.Match[str]) -> str:
    return tag[0].lower().strip("</> ").split()[0]


def _protected(text: str, tags: list[re.Match[str]]) -> str:
    """The text with every < and & that is not HTML escaped as an entity, so that the parser reads it as text."""
    parts, end = [], 0
    for tag in tags:
        parts += [_escaped(text[end : tag.start()]), tag[0]]
        end = tag.end()
    return "".join([*parts, _escaped(text[end:])])


def _escaped(text: str) -> str:
    kept = _ENTITY.split(text)
    entities = [match[0] for match in _ENTITY.finditer(text)]
    safe = [part.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") for part in kept]
    return "".join(a + b for a, b in zip(safe, [*entities, ""], strict=True))
