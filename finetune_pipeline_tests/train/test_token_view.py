"""The view of what is learned: kinds, texts and ids of tokens; nothing in a row becomes markup or a control."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from finetune_pipeline.records import Message
from finetune_pipeline.train.replay import general_texts, whole_texts
from finetune_pipeline.train.token_view import (
    LONGEST_CONTEXT,
    TokenView,
    page,
    shortened,
    token_texts,
    token_view,
    typical,
    visible,
    write_view,
)
from finetune_pipeline.train.tokenize import Completion, TokenizedExample, tokenize, tokenize_pairs
from finetune_pipeline_tests.train.setup import SYSTEM, rows
from finetune_pipeline_tests.train.test_tokenize import TURNS

ENDS = frozenset({2})


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


def kinds(view: TokenView, row: int = 0) -> list[tuple[str, str]]:
    return [(part["kind"], "".join(text for _, text in part["tokens"])) for part in view["rows"][row]["parts"]]


def test_the_completion_with_its_end_of_turn_is_learned_and_the_prompt_is_not(tokenizer: Any) -> None:
    view = token_view(tokenize(rows(3), tokenizer, SYSTEM, ENDS), tokenizer)
    assert (view["of_rows"], len(view["rows"]), view["general"]) == (3, 3, [])
    (context, prompt), (learned, completion) = kinds(view)
    assert (context, learned, completion) == ("context", "learned", "red<|im_end|>")
    assert SYSTEM in prompt and prompt.endswith("<|im_start|>assistant\n")


def test_every_turn_is_learned_and_what_lies_between_is_not(tokenizer: Any) -> None:
    view = token_view(tokenize([TURNS], tokenizer, SYSTEM, ENDS), tokenizer)
    assert [kind for kind, _ in kinds(view)] == ["context", "learned", "context", "learned"]
    assert [text for kind, text in kinds(view) if kind == "learned"] == ["red<|im_end|>", "green<|im_end|>"]
    assert "and the gate" in kinds(view)[2][1]


def test_the_rejected_completion_and_general_texts_are_apart(tokenizer: Any) -> None:
    general = whole_texts(tokenize(general_texts()[:3], tokenizer, "", ENDS))
    view = token_view(tokenize_pairs(rows(2, pairs=True), tokenizer, SYSTEM, ENDS), tokenizer, general)
    assert kinds(view)[1:] == [("learned", "red<|im_end|>"), ("rejected", "no green<|im_end|>")]
    assert [row["id"] for row in view["general"]] == [row.id for row in general_texts()[:2]]
    assert [part["kind"] for part in view["general"][0]["parts"]] == ["context", "general"]


def test_the_texts_of_the_tokens_joined_are_the_text(tokenizer: Any) -> None:
    text = "where is my Zefir fan, please?\n\nHV-48213"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert "".join(token_texts(tokenizer, ids)) == text
    broken = tokenizer("é", add_special_tokens=False)["input_ids"]  # two tokens, each a half of the character
    assert token_texts(tokenizer, broken) == tokenizer.convert_ids_to_tokens(broken)


def test_a_sentencepiece_token_keeps_its_leading_blank() -> None:
    """Decoded alone, "▁is" is "is"."""

    class Pieces:
        words = ("<s>", "▁where", "▁is", "it")

        def decode(self, ids: list[int]) -> str:
            return "".join(self.words[i] for i in ids).replace("▁", " ").removeprefix(" ")

        def convert_ids_to_tokens(self, token: int) -> str:
            return self.words[token]

    assert token_texts(Pieces(), [1, 2, 3]) == ["where", " is", "it"]


def test_the_rows_show_what_there_is() -> None:
    def row(name: str, length: int = 5, completions: int = 1, spans: Any = None) -> TokenizedExample:
        return TokenizedExample(name, [1] * length, tuple(Completion([7, 2], spans) for _ in range(completions)))

    many = [row(f"r{n}") for n in range(50)]
    many[17], many[23], many[31], many[44] = (
        row("long", 90),
        row("short", 1),
        row("turns", 5, 1, ((0, 1), (1, 2))),
        row("pair", 5, 2),
    )
    shown = [each.id for each in typical(many, 10)]
    assert len(shown) == 10 and {"long", "short", "turns", "pair"} <= set(shown)
    assert shown == sorted(shown, key=[each.id for each in many].index)
    assert [each.id for each in typical(many[:3], 10)] == ["r0", "r1", "r2"] and typical([], 10) == []


def test_a_long_context_is_cut_on_the_page_and_whole_in_the_file(tokenizer: Any, tmp_path: Path) -> None:
    long = TokenizedExample("long", [5] * 3000, (Completion([7] * 900 + [2]),))
    view = token_view([long], tokenizer)
    first, second, learned = shortened(view["rows"][0])["parts"]
    assert (len(first["tokens"]), first["hidden"], len(second["tokens"])) == (200, 3000 - LONGEST_CONTEXT, 200)
    assert len(learned["tokens"]) == 901
    write_view(tmp_path, view, "parcels")
    assert len(json.loads((tmp_path / "tokens.json").read_text("utf-8"))["rows"][0]["parts"][0]["tokens"]) == 3000
    assert "2,600 more tokens" in (tmp_path / "tokens.html").read_text("utf-8")


def test_texts_of_rows_are_no_markup_and_no_controls(tokenizer: Any) -> None:
    (row,) = rows(1)
    text = "<script>alert(1)</script>\x1b[31m\u202egnp.exe"
    hostile = replace(row, id="<b>x</b>", messages=(Message("user", text), row.messages[1]))
    html = page(token_view(tokenize([hostile], tokenizer, SYSTEM, ENDS), tokenizer), "<i>task</i>")
    assert "<script" not in html and "<b>" not in html and "<i>" not in html
    assert "\x1b" not in html and "\u202e" not in html
    assert visible("a\x1b[31m\u202e\n\tb") == "a\\x1b[31m\\u202e⏎⇥b"
