"""What is learned of a row: its completion, or every assistant turn; the prompt is that of serving."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune_pipeline.inference.chat_template import render
from finetune_pipeline.records import Example, Message
from finetune_pipeline.train.audit import audit
from finetune_pipeline.train.method import load_base
from finetune_pipeline.train.tokenize import TokenizedExample, tokenize, tokenize_pairs
from finetune_pipeline_tests.train.setup import RULES, SYSTEM, rows

TURNS = Example(
    "turns",
    (
        Message("user", "the red wall"),
        Message("assistant", "red"),
        Message("user", "and the gate"),
        Message("assistant", "green"),
    ),
    "test",
    "test:1",
)


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> Any:
    return load_base(tiny_model, RULES)


def learned(base: Any, row: TokenizedExample, completion: int = 0) -> str:
    text: str = base.tokenizer.decode(row.completions[completion].targets)
    return text


def test_the_end_of_turn_token_is_learned_and_the_prompt_is_that_of_serving(base: Any) -> None:
    (row,) = tokenize(rows(1), base.tokenizer, SYSTEM, base.end_ids)
    assert row.prompt_matches
    assert learned(base, row) == "red<|im_end|>"
    assert base.tokenizer.decode(row.prompt) == render(base.tokenizer, rows(1)[0].chat(SYSTEM))


def test_every_assistant_turn_of_a_conversation_is_learned(base: Any) -> None:
    (row,) = tokenize([TURNS], base.tokenizer, SYSTEM, base.end_ids)
    assert learned(base, row) == "red<|im_end|>green<|im_end|>"
    whole = base.tokenizer.decode(row.prompt + row.completions[0].ids)
    assert whole == render(base.tokenizer, TURNS.chat(SYSTEM)) + "green<|im_end|>"
    (last,) = tokenize([TURNS], base.tokenizer, SYSTEM, base.end_ids, turns="last")
    assert learned(base, last) == "green<|im_end|>"
    assert base.tokenizer.decode(last.prompt) == render(base.tokenizer, TURNS.chat(SYSTEM))


def test_a_template_that_changes_earlier_turns_makes_each_turn_a_row(
    base: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Qwen3's does, which removes the reasoning of earlier turns."""
    cut = "message['content'][:1 if message['role'] == 'assistant' and not loop.last else 99]"
    template = base.tokenizer.chat_template.replace("message['content']", cut)
    monkeypatch.setattr(base.tokenizer, "chat_template", template)
    first, last = tokenize([TURNS], base.tokenizer, SYSTEM, base.end_ids)
    assert (first.id, last.id) == ("turns", "turns")
    assert learned(base, first) == "red<|im_end|>"
    assert learned(base, last) == "green<|im_end|>"
    assert "assistant\nr<|im_end|>" in base.tokenizer.decode(last.prompt)


# As Qwen3's, for a conversation of one turn: reasoning in an answer is put where the prompt has an empty block.
REASONING = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% set parts = message['content'].split('</think>') %}"
    "{{ '<think>\n' + (parts[0].split('<think>')[-1] if parts|length > 1 else '') + '\n</think>\n\n' + parts[-1] }}"
    "{% else %}{{ message['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' }}{% endif %}"
)


@pytest.mark.parametrize("completion", ["chosen", "rejected"])
def test_reasoning_in_an_answer_stops_the_training(base: Any, monkeypatch: pytest.MonkeyPatch, completion: str) -> None:
    """Its template renders another prompt with that answer than without: serving would not render what was learned."""
    monkeypatch.setattr(base.tokenizer, "chat_template", REASONING)
    good, other = rows(2, pairs=True)
    if completion == "chosen":
        other = other.with_completion("<think>a wall</think>red")
    else:
        other = replace(other, rejected="<think>a wall</think>red")
    pairs = tokenize_pairs([good, other], base.tokenizer, SYSTEM, base.end_ids)
    assert [row.prompt_matches for row in pairs] == [True, False]
    assert "a wall\n</think>\n\nred<|im_end|>" in learned(base, pairs[1], ("chosen", "rejected").index(completion))
    audited = audit(pairs, base.end_ids, 2048, 0)
    assert [check.observed for check in audited.checks if not check.passed] == ["1 rows: row1"]
    assert "<think>" in audited.hint


def test_both_completions_of_a_pair_follow_the_same_prompt(base: Any) -> None:
    (example,) = rows(1, pairs=True)
    (row,) = tokenize_pairs([example], base.tokenizer, SYSTEM, base.end_ids)
    assert (learned(base, row, 0), learned(base, row, 1)) == ("red<|im_end|>", "no green<|im_end|>")
    assert base.tokenizer.decode(row.prompt) == render(base.tokenizer, example.chat(SYSTEM))
    (single,) = tokenize_pairs(rows(1), base.tokenizer, SYSTEM, base.end_ids)
    assert len(single.completions) == 1
