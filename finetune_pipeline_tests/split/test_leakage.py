"""The overlap check names every row that overlaps, and the kind of overlap."""

from __future__ import annotations

from dataclasses import replace

from finetune_pipeline.records import Example, Message
from finetune_pipeline.split.assignment import units
from finetune_pipeline.split.leakage import overlaps, row_similarity, user_text
from finetune_pipeline_tests.artifacts import example


def test_an_empty_split_has_no_overlap() -> None:
    rows = [example("a", "q", "a")]
    assert overlaps([], rows, row_similarity(rows, 0.5)) == []
    assert overlaps(rows, [], row_similarity(rows, 0.5)) == []


def test_each_pair_is_listed_once_with_its_worst_kind_worst_first() -> None:
    test = [
        example("t1", "Where is my parcel?", "x"),
        example("t2", "the card was declined at the shop", "x", group="customer 7"),
        example("same", "something else entirely", "x"),
    ]
    train = [
        example("a", "where is my PARCEL", "y"),
        example("b", "the card was declined at the shops", "y"),
        example("c", "nobody knows", "y", group="customer 7"),
        example("same", "something else entirely", "x"),
    ]
    found = [(o.kind, o.test, o.other) for o in overlaps(test, train, row_similarity([*test, *train], 0.6))]
    assert found == [
        ("same row", "same", "same"),
        ("same prompt", "t1", "a"),
        ("same group", "t2", "c"),
        ("near duplicate", "t2", "b"),
    ]


def test_the_text_of_a_conversation_is_all_user_messages() -> None:
    messages = (Message("user", "Refund, please!"), Message("assistant", "Sure?"), Message("user", "Yes."))
    row = replace(example("a", "", ""), messages=(*messages, Message("assistant", "done")))
    assert user_text(row) == "refund please yes"


def talk(id_: str, *said: str) -> Example:
    names = ("user", "assistant")
    return Example(id_, tuple(Message(names[n % 2], text) for n, text in enumerate(said)), "s", "s:1")  # type: ignore[arg-type]


def test_a_prompt_that_an_earlier_turn_of_a_training_row_answers_is_an_overlap() -> None:
    one = talk("one", "Where is my parcel?", "On its way.")
    two = talk("two", "where is my parcel", "Which one?", "the blue lamp of last week", "Here.")
    three = talk("three", *(m.content for m in two.messages), "and the invoice, please, with the number", "Sent.")
    rows = [one, two, three, talk("other", "Hi", "Hello", "something else altogether", "Yes")]
    similarity = row_similarity(rows, 0.6)
    found = overlaps([one, two], [three, rows[3]], similarity)
    assert [(o.kind, o.test, o.other) for o in found if o.kind == "earlier turn"] == [
        ("earlier turn", "one", "three"),
        ("earlier turn", "two", "three"),
    ]
    assert overlaps([three], [one], similarity) == []  # what the test row asks last, the other does not answer
    assert sorted(units(rows, [])) == [[0, 1, 2], [3]]


def test_rejected_completions_are_no_overlap() -> None:
    test = [replace(example("t", "where is it?", "here"), rejected="go away")]
    train = [example("a", "say it rudely", "go away"), replace(example("b", "who?", "me"), rejected="go away")]
    assert overlaps(test, train, row_similarity([*test, *train], 0.6)) == []


def test_an_instruction_that_all_rows_share_is_no_overlap() -> None:
    instruction = "Decide which intent the message of the customer has and answer with nothing but its name. " * 4
    rows = [example(f"r{n}", f"{instruction}{word * 3}", "x") for n, word in enumerate("abcdefghijklmnopqrstuvwxyz")]
    assert overlaps(rows[:10], rows[10:], row_similarity(rows, 0.6)) == []


def test_any_number_of_copies_that_differ_in_a_number_overlap() -> None:
    text = "I have been waiting for my parcel for three weeks now and nobody answers the phone. Where is it? Order HV-"
    other = [example(f"o{n}", f"{n * 7919 % 9973} " * 9, "x") for n in range(2000)]
    for copies in (49, 50, 90):
        rows = [*(example(f"c{n}", f"{text}{10007 + 37 * n}", "late") for n in range(copies)), *other]
        similarity = row_similarity(rows, 0.6)
        assert list(range(copies)) in similarity.texts.clusters()
        assert {o.test for o in overlaps(rows[:10], rows[10:copies], similarity)} == {row.id for row in rows[:10]}


def test_all_of_many_equal_rows_are_named_without_all_pairs() -> None:
    test = [example(f"t{n}", "Where is it?", "x") for n in range(300)]
    train = [example(f"o{n}", "where is it", "x") for n in range(3000)]
    found = overlaps(test, train, row_similarity([*test, *train], 0.6))
    assert {o.test for o in found} == {row.id for row in test}
    assert {o.other for o in found} == {row.id for row in train}
    assert len(found) < 4000
