from __future__ import annotations

import pytest

from finetune_pipeline.quality import rules
from finetune_pipeline.records import Example, Message
from finetune_pipeline_tests.quality.conftest import ANSWER, declare, row, rows


def broken(example: Example, **sections: object) -> list[str]:
    """The rules that one row breaks, standing among good ones."""
    task = declare(**sections)
    frame = rules.table([row(900), example, row(901)], task, 0, {})
    return [rule.name for rule in rules.rules_of(task) if not frame[rule.name].iloc[1]]


def test_a_good_row_breaks_no_rule() -> None:
    assert broken(row(1)) == []


@pytest.mark.parametrize(
    ("example", "rule"),
    [
        (row(1, prompt=" \n"), "prompt_fits"),
        (row(1, prompt="x" * 8001), "prompt_fits"),
        (row(1, answer='{"intent": "weather"}'), "completion_valid"),
        (row(1, answer="refund, I think"), "completion_valid"),
        (row(1, prompt="write to jane.doe@example.org please"), "no_personal_data"),
        (row(1, prompt="it is<br/>broken"), "no_html"),
        (row(1, prompt='see <a href="x">this</a>'), "no_html"),
        (row(1, prompt="salt &amp; pepper"), "no_html"),
        (row(1, prompt="the caf\ufffd lamp"), "encoding_intact"),
        (row(1, prompt="a schÃ¶ne lamp for my cafÃ©"), "encoding_intact"),
        (row(1, prompt="a bell\x07 rings"), "encoding_intact"),
    ],
)
def test_each_rule_finds_its_fault_and_no_other_does(example: Example, rule: str) -> None:
    assert broken(example) == [rule]


def test_mojibake_is_found_wherever_it_stands_in_a_long_text() -> None:
    words = "all of these words are plain and go on for quite a while "
    for text in (f"schÃ¶n {words}", f"{words}schÃ¶n {words}", f"{words}schÃ¶n", f"{words}Ã {words}"):
        assert broken(row(1, prompt=text.strip())) == ["encoding_intact"], text
    assert broken(row(1, prompt=f"schön {words}… déjà {words}„so“")) == []


def test_answers_that_are_missing_or_too_long_do_not_fit() -> None:
    assert "completion_fits" in broken(row(1, answer=""))
    assert "completion_fits" in broken(row(1, answer="x" * 50), quality={"max_completion_chars": 40})
    assert "completion_fits" not in broken(row(1, answer="x" * 40), quality={"max_completion_chars": 40})


@pytest.mark.parametrize(
    "text",
    [
        "is 3 < 4 and b > c?",
        "mail <EMAIL> or call <PHONE>",
        "Lumo & Co; thanks",
        "R&D; again",
        "naïve café, 5 €",
        "why `<br>` in `a &amp; b`?",
    ],
)
def test_what_only_looks_like_html_or_broken_encoding_is_right(text: str) -> None:
    assert broken(row(1, prompt=text)) == []


@pytest.mark.parametrize(
    ("roles", "right"),
    [
        ("ua", True),
        ("sua", True),
        ("uaua", True),
        ("u", False),
        ("a", False),
        ("uua", False),
        ("uau", False),
        ("usa", False),
    ],
)
def test_roles_alternate_and_the_answer_is_last(roles: str, right: bool) -> None:
    names = {"s": "system", "u": "user", "a": "assistant"}
    messages = tuple(Message(names[role], ANSWER if role == "a" else f"turn {n}") for n, role in enumerate(roles))  # type: ignore[arg-type]
    frame = rules.table([Example("x", messages, "s", "o")], declare(), 0, {})
    assert bool(frame["roles_in_order"].iloc[0]) is right


def test_both_rows_that_ask_the_same_are_wrong() -> None:
    frame = rules.table([row(1, prompt="hello there"), row(2), row(3, prompt="hello there")], declare(), 0, {})
    assert frame["prompt_unique"].tolist() == [False, True, False]
    assert frame["row_ok"].tolist() == [False, True, False]


def test_one_question_with_two_answers_is_right_where_contradictions_are_kept() -> None:
    two = [row(1, prompt="hello there"), row(2, prompt="hello there", answer='{"intent": "delivery"}')]
    keep = declare(clean={"contradictions": "keep"})
    assert rules.table(two, declare(), 0, {})["prompt_unique"].tolist() == [False, False]
    assert rules.table(two, keep, 0, {})["prompt_unique"].tolist() == [True, True]
    assert rules.table([*two, two[0]], keep, 0, {})["prompt_unique"].tolist() == [False, True, False]


def test_one_question_with_two_answers_is_right_in_free_text() -> None:
    two = [row(1, prompt="hello there", answer="Hi!"), row(2, prompt="hello there", answer="Good morning.")]
    text = declare(answer={"format": "text"})
    assert rules.table(two, text, 0, {})["prompt_unique"].tolist() == [True, True]
    assert rules.table([*two, two[0]], text, 0, {})["prompt_unique"].tolist() == [False, True, False]


def test_the_same_last_word_in_two_conversations_is_no_repetition() -> None:
    def talk(number: int, topic: str) -> Example:
        said = (("user", topic), ("assistant", "Which one?"), ("user", "the blue one"), ("assistant", ANSWER))
        return Example(f"r{number}", tuple(Message(r, t) for r, t in said), "s", "o")  # type: ignore[arg-type]

    frame = rules.table([talk(1, "my lamp broke"), talk(2, "my fan broke")], declare(), 0, {})
    assert frame["prompt_unique"].all()


def test_rules_follow_what_cleaning_was_told() -> None:
    names = {rule.name for rule in rules.rules_of(declare(clean={"personal_data": "keep", "html": False}))}
    assert {"no_personal_data", "no_html"}.isdisjoint(names)
    assert "completion_valid" in names


def test_repetition_is_found_across_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rules.table([*rows(10, bad=2), row(11, prompt=row(0).prompt)], declare(), 3, {})
    monkeypatch.setattr(rules, "CHUNK_ROWS", 4)
    pieces = rules.table([*rows(10, bad=2), row(11, prompt=row(0).prompt)], declare(), 3, {})
    assert pieces.equals(whole)
    assert not pieces["prompt_unique"].iloc[10]


def test_the_table_holds_no_text_and_the_share_dropped() -> None:
    frame = rules.table([row(1, prompt="a secret of mine"), row(2), row(3)], declare(), 1, {})
    assert "secret" not in frame.to_json()
    assert frame["share_dropped"].tolist() == [0.25] * 3


def test_no_rows_give_a_table_with_every_column() -> None:
    empty, full = rules.table([], declare(), 5, {}), rules.table(rows(3), declare(), 5, {})
    assert len(empty) == 0
    assert list(empty.columns) == list(full.columns)
