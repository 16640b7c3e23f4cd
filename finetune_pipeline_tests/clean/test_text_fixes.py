"""Broken texts are fixed, and correct ones are unchanged."""

from __future__ import annotations

import pytest

from finetune_pipeline.clean.normalize import normalize
from finetune_pipeline.clean.text_fixes import fix_completion, fix_prompt


@pytest.mark.parametrize(
    ("text", "fixed", "rules"),
    [
        ("<p>Hi,<br>my order &amp; refund?</p>", "Hi,\nmy order & refund?", ["html"]),
        ('<p class="x">one</p><p>two &lt; 5</p>', "one\ntwo < 5", ["html"]),
        ("<div><p>cut off", "cut off", ["html"]),
        ("<script>alert(1)</script><!-- no -->hi", "hi", ["html"]),
        ("Tom &amp; Jerry&nbsp;!", "Tom & Jerry !", ["html", "space"]),
        ("&amp;lt;b&amp;gt;twice&amp;lt;/b&amp;gt;", "twice", ["html"]),
        ("cafÃ© naÃ¯ve â€œquotedâ€\x9d", "café naïve “quoted”", ["encoding"]),
        ("I was charged Â£9, not â‚¬10", "I was charged £9, not €10", ["encoding"]),
        ("where is\x00 my\u200b order\x1b[0m", "where is my order", ["control"]),
        ("  two  spaces\u00a0x \r\n\n\n\n y ", "two spaces x\n\n y", ["space"]),
    ],
)
def test_broken_texts_are_fixed(text: str, fixed: str, rules: list[str]) -> None:
    assert fix_prompt(text, html=True) == (fixed, rules)
    assert fix_prompt(fixed, html=True) == (fixed, [])  # a second time changes nothing


@pytest.mark.parametrize(
    "text",
    [
        "a < b and c > d",
        "a<b and c>d",
        "if a <b> c then",
        "I <3 it & you, R&D; AT&T",
        "List<String> x; https://x.org/?a=1&copy=2",
        "use `<b>x</b>` here\n```\n<p>a  b</p>\n    x &amp; y\n```",
        "def f():\n    return 1",
        "don’t “touch” ﬁ — naïve",
        "👨\u200d👩\u200d👧 family, mail <EMAIL>",
        "Straße, Ærø, 注文はどこですか, где мой заказ",
    ],
)
def test_correct_texts_are_unchanged(text: str) -> None:
    assert fix_prompt(text, html=True) == (text, [])


def test_html_is_kept_where_declared_and_in_completions() -> None:
    assert fix_prompt("<b>x</b>", html=False) == ("<b>x</b>", [])
    assert fix_completion("<b>x</b>  y") == ("<b>x</b>  y", [])
    assert fix_completion("cafÃ©") == ("café", ["encoding"])


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("Where's my  ORDER (HV-48213)?!", "where s my order hv 48213"),
        ("what is 3 - 4?", "what is 3 - 4"),
        ("what is 3-4", "what is 3 - 4"),
        ("3+4", "3+4"),
        ("???", "???"),
        ("ＡＢＣ Straße 👍", "abc strasse 👍"),
    ],
)
def test_normalized_texts_keep_characters_with_a_meaning(text: str, normalized: str) -> None:
    assert normalize(text) == normalized
    assert normalize(normalized) == normalized
