"""The rules that mend a text, in the order in which they are applied. Each is a pure function in a module of its own.

    mend("<p>IÂ´d like  a refund&nbsp;</p>", html=True)    # ("I´d like a refund", ["encoding", "html", "space"])

A question is mended by all of them. An answer is what the model learns to write, so it is only freed of broken
encoding and of control characters; its form is the business of `answers.tidy`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from finetune_pipeline.clean.control import without_control
from finetune_pipeline.clean.markup import without_markup
from finetune_pipeline.clean.mojibake import mend_encoding
from finetune_pipeline.clean.space import even_space

Rule: TypeAlias = "tuple[str, Callable[[str], str]]"


_ANSWER: tuple[Rule, ...] = (("encoding", mend_encoding), ("control", without_control))
_QUESTION: tuple[Rule, ...] = (*_ANSWER, ("html", without_markup), ("space", even_space))
_PLAIN_QUESTION = tuple(rule for rule in _QUESTION if rule[0] != "html")


def mend(text: str, html: bool) -> tuple[str, list[str]]:
    """The mended question, and the slugs of the rules that changed it. `html`: whether markup is stripped."""
    return _applied(text, _QUESTION if html else _PLAIN_QUESTION)


def mend_answer(text: str) -> tuple[str, list[str]]:
    """The mended answer, and the slugs of the rules that changed it."""
    return _applied(text, _ANSWER)


def _applied(text: str, rules: tuple[Rule, ...]) -> tuple[str, list[str]]:
    slugs: list[str] = []
    for slug, rule in rules:
        mended = rule(text)
        if mended != text:
            slugs.append(slug)
            text = mended
    return text, slugs
