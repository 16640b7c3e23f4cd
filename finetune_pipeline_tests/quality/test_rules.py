"""Each rule of the quality gate finds its fault, and no other rule does."""

from __future__ import annotations

from dataclasses import replace

import pytest

from finetune_pipeline.quality.rules import broken_by, rules_of
from finetune_pipeline.records import Example, Message
from finetune_pipeline_tests.quality.conftest import COMPLETION, RIGHT, broken, check, declare, row, rows

TEXT = {"answer": {"format": "text"}}
LABEL = {"answer": {"format": "label", "labels": ["delivery", "refund", "TODO"]}}
REPLY = {"properties": {"reply": {"type": "string"}, "state": {"enum": ["TODO", "done"]}}}
JSON = {"answer": {"format": "json", "schema": REPLY}}
KEY = "AKIA" + "IOSFODNN7Q2SAMPL"
LONG = "my lamp broke after two days of use and nobody at your shop has written back to me since"


def test_a_right_row_breaks_no_rule() -> None:
    assert broken(row(1)) == []
    assert broken(row(1, completion=RIGHT["text"]), **TEXT) == []
    assert broken(row(1, completion="TODO"), **LABEL) == []
    assert broken(row(1, completion='{"reply": "It is on its way.", "state": "TODO"}'), **JSON) == []


def pair(rejected: str) -> Example:
    return replace(row(1, completion=RIGHT["text"]), rejected=rejected)


FAULTS = [
    (row(1, prompt=" \n"), {}, "prompt_present"),
    (row(1, prompt="x" * 8001), {}, "prompt_fits"),
    (row(1, completion='{"intent": "weather"}'), {}, "completion_valid"),
    (row(1, completion="refund, I think"), {}, "completion_valid"),
    (row(1, completion='{"intent": "refund", "intent": "refund"}'), {}, "completion_valid"),
    (row(1, completion="lost"), LABEL, "completion_valid"),
    (row(1, completion=" "), TEXT, "completion_present"),
    (row(1, prompt="write to jane.doe@example.org please"), {}, "no_personal_data"),
    (row(1, prompt=f"use the key {KEY} for it"), {}, "no_secrets"),
    (row(1, completion=f"Use {KEY} for it."), TEXT, "no_secrets"),
    (row(1, prompt="it is<br/>broken"), {}, "no_html"),
    (row(1, prompt='see <a href="x">this</a>'), {}, "no_html"),
    (row(1, prompt="salt &amp; pepper"), {}, "no_html"),
    (row(1, prompt="the caf\ufffd lamp"), {}, "encoding_intact"),
    (row(1, prompt="a schÃ¶ne lamp for my cafÃ©"), {}, "encoding_intact"),
    (row(1, prompt="a bell\x07 rings"), {}, "encoding_intact"),
    (row(1, completion="I'm sorry, but I can't help with that."), TEXT, "no_refusal"),
    (row(1, completion='{"reply": "As an AI language model, I do not know."}'), JSON, "no_refusal"),
    (row(1, completion="Dear [insert name], it is on its way."), TEXT, "no_placeholder"),
    (row(1, completion='{"reply": "Dear [insert name]"}'), JSON, "no_placeholder"),
    (row(1, prompt=LONG, completion=f"{LONG.capitalize()}. It is on its way."), TEXT, "no_echo"),
    (row(1, completion="Your refund has been sent to the"), TEXT, "not_cut_off"),
    (pair("Ask jane.doe@example.org"), TEXT, "no_personal_data"),
    (pair(f"Use {KEY} for it."), TEXT, "no_secrets"),
    (pair("in the caf\ufffd"), TEXT, "encoding_intact"),
    (pair("x" * 8001), TEXT, "completion_fits"),
]


@pytest.mark.parametrize("rejected", ["I'm sorry, but I can't help with that.", "Dear [name],", "It is on the", "TODO"])
def test_what_an_answer_may_be_rejected_for_is_no_fault_of_a_rejected_answer(rejected: str) -> None:
    assert broken(pair(rejected), **TEXT) == []
    assert broken(replace(row(1), rejected=rejected)) == []  # nor is a form that is not the declared one


@pytest.mark.parametrize(("example", "sections", "rule"), FAULTS)
def test_each_rule_finds_its_fault_and_no_other_does(example: Example, sections: dict[str, object], rule: str) -> None:
    assert broken(example, **sections) == [rule]


@pytest.mark.parametrize(("example", "sections", "rule"), FAULTS)
def test_one_row_alone_breaks_the_same_rule_without_great_expectations(
    example: Example, sections: dict[str, object], rule: str
) -> None:
    """A correction in the desk is checked so."""
    task = declare(**sections)
    alone = [] if rule == "not_cut_off" else [rule]  # which shows among others only
    assert [each.name for each in broken_by(example, task, rules_of(task))] == alone


@pytest.mark.parametrize(
    ("allowed", "example"),
    [
        ("refusals", row(1, completion="I'm sorry, but I can't help with that.")),
        ("placeholders", row(1, completion="Dear [insert name], it is on its way.")),
        ("echo", row(1, prompt=LONG, completion=f"{LONG}.")),
        ("cut_off", row(1, completion="Your refund has been sent to the")),
        ("secrets", row(1, prompt=f"use the key {KEY} for it", completion=RIGHT["text"])),
    ],
)
def test_a_task_may_allow_what_is_no_fault_there(allowed: str, example: Example) -> None:
    assert len(broken(example, **TEXT)) == 1
    assert broken(example, **TEXT, quality={"min_rows": 10, "allow": [allowed]}) == []


def test_a_placeholder_of_the_prompt_may_stay_in_the_completion() -> None:
    template = row(1, prompt="translate: Dear [insert name]", completion="Translated: Dear [insert name].")
    assert broken(template, **TEXT) == []


def test_mojibake_is_found_wherever_it_is_in_a_long_text() -> None:
    words = "all of these words are plain and go on for quite a while "
    texts = (f"schÃ¶n {words}", f"{words}schÃ¶n {words}", f"{words}schÃ¶n", f"{words}Ã {words}")
    checked = check([row(n, prompt=text.strip()) for n, text in enumerate(texts)], declare())
    assert checked.broken["encoding_intact"].all()
    assert broken(row(1, prompt=f"schön {words}… déjà {words}„so“")) == []


def test_completions_that_are_missing_or_too_long() -> None:
    short = {"max_completion_chars": 40}
    assert "completion_present" in broken(row(1, completion=""))
    assert "completion_fits" in broken(row(1, completion="x" * 50), quality=short)
    assert "completion_fits" not in broken(row(1, completion="x" * 40), quality=short)


@pytest.mark.parametrize(
    "text",
    [
        "is 3 < 4 and b > c?",
        "mail <EMAIL> or call <PHONE>",
        "Lumo & Co; thanks",
        "R&D; again",
        "naïve café, 5 €",
        "why `<br>` in `a &amp; b`?",
        "XXX TODO [name] {{x}}: a customer may write so",
    ],
)
def test_prompts_that_only_look_wrong_are_right(text: str) -> None:
    assert broken(row(1, prompt=text)) == []


def talk(roles: str) -> Example:
    names = {"s": "system", "u": "user", "a": "assistant"}
    messages = [Message(names[role], COMPLETION if role == "a" else f"turn {n}") for n, role in enumerate(roles)]  # type: ignore[arg-type]
    return Example(roles, tuple(messages), "s", roles)


def test_roles_alternate_and_the_completion_is_last() -> None:
    right, wrong = ["ua", "sua", "uaua"], ["u", "a", "uua", "uau", "usa", "ua\n"]
    checked = check([talk(roles.strip()) for roles in [*right, *wrong[:-1]]], declare())
    assert checked.broken["roles_in_order"].tolist() == [False] * 3 + [True] * 5


def test_both_rows_with_the_same_prompt_are_wrong() -> None:
    checked = check([row(1, prompt="hello there"), row(2), row(3, prompt="hello there")], declare())
    assert checked.broken["prompt_unique"].tolist() == [True, False, True]
    assert checked.row_ok.tolist() == [False, True, False]


def test_one_prompt_with_two_completions_is_right_where_contradictions_are_kept() -> None:
    two = [row(1, prompt="hello there"), row(2, prompt="hello there", completion='{"intent": "delivery"}')]
    keep = declare(clean={"contradictions": "keep"})
    assert check(two, declare()).broken["prompt_unique"].tolist() == [True, True]
    assert check(two, keep).broken["prompt_unique"].tolist() == [False, False]
    assert check([*two, two[0]], keep).broken["prompt_unique"].tolist() == [True, False, True]


def test_one_prompt_with_two_completions_is_right_in_free_text() -> None:
    two = [
        row(1, prompt="hello there", completion="Hi!"),
        row(2, prompt="hello there", completion="Good morning."),
    ]
    assert check(two, declare(**TEXT)).broken["prompt_unique"].tolist() == [False, False]
    assert check([*two, two[0]], declare(**TEXT)).broken["prompt_unique"].tolist() == [True, False, True]


def test_the_same_last_word_in_two_conversations_is_no_repetition() -> None:
    def conversation(number: int, topic: str) -> Example:
        messages = (("user", topic), ("assistant", "Which one?"), ("user", "the blue one"), ("assistant", COMPLETION))
        return Example(f"r{number}", tuple(Message(r, t) for r, t in messages), "s", "o")  # type: ignore[arg-type]

    checked = check([conversation(1, "my lamp broke"), conversation(2, "my fan broke")], declare())
    assert not checked.broken["prompt_unique"].any()


def test_an_earlier_turn_is_searched_as_well() -> None:
    messages = (
        ("user", "mail jane.doe@example.org"),
        ("assistant", "Which?"),
        ("user", "blue"),
        ("assistant", COMPLETION),
    )
    example = Example("r", tuple(Message(r, t) for r, t in messages), "s", "o")  # type: ignore[arg-type]
    assert broken(example) == ["no_personal_data"]


@pytest.mark.parametrize(
    ("said", "rule"),
    [
        (f"Use {KEY} for it.", "no_secrets"),
        ("I'm sorry, but I can't help with that.", "no_refusal"),
        ("Dear [insert name], which one?", "no_placeholder"),
        ("y" * 8001, "completion_fits"),
        ("Do you mean the one for [city]?", None),  # the user wrote so
    ],
)
def test_an_earlier_turn_of_the_assistant_is_learned_and_so_checked(said: str, rule: str | None) -> None:
    turns = (("user", "a letter to [city]"), ("assistant", said), ("user", "blue"), ("assistant", RIGHT["text"]))
    example = Example("r", tuple(Message(r, t) for r, t in turns), "s", "o")  # type: ignore[arg-type]
    assert broken(example, **TEXT) == ([rule] if rule else [])


def test_rules_depend_on_the_clean_section() -> None:
    names = {rule.name for rule in rules_of(declare(clean={"personal_data": "keep", "html": False}))}
    assert {"no_personal_data", "no_html"}.isdisjoint(names)
    assert "completion_valid" in names


def test_completions_that_are_declared_values_are_not_searched() -> None:
    names = {rule.name for rule in rules_of(declare(**LABEL))}
    assert {"no_refusal", "no_placeholder", "no_echo", "not_cut_off"}.isdisjoint(names)
    assert {"no_echo", "not_cut_off"}.isdisjoint(rule.name for rule in rules_of(declare()))


def test_no_rows_give_every_check() -> None:
    empty, full = check([], declare()), check(rows(3), declare())
    assert list(empty.broken) == list(full.broken)
    assert len(empty.row_ok) == 0
