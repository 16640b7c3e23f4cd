"""The table that Great Expectations checks: its columns and their values."""

from __future__ import annotations

from dataclasses import replace

from finetune_pipeline.quality.table import columns_for_teams, frame_of
from finetune_pipeline.records import Example, Message
from finetune_pipeline_tests.quality.conftest import declare, row, rows


def test_the_columns_that_a_declaration_may_use() -> None:
    assert columns_for_teams(declare()) == (
        "id", "origin", "source", "prompt", "completion", "prompt_chars", "completion_chars", "rejected",
        "roles", "field.intent",
    )  # fmt: skip
    assert "field.intent" not in columns_for_teams(declare(answer={"format": "text"}))


def test_a_row_of_the_table() -> None:
    messages = (
        ("system", "be brief"),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "cd"),
        ("assistant", '{"intent": "x"}'),
    )
    example = Example("i", tuple(Message(r, t) for r, t in messages), "shop", "t.csv:1")  # type: ignore[arg-type]
    [found] = frame_of([example], declare()).to_dict("records")
    assert found["prompt"] == "cd" and found["prompt_chars"] == 2
    assert found["completion"] == '{"intent": "x"}' and found["field.intent"] == "x"
    assert found["roles"] == "suaua" and found["turns"] == ("a", "b", "cd", '{"intent": "x"}')
    assert found["free_texts"] == ("x",)


def test_a_rejected_answer_and_earlier_turns_are_in_the_columns_of_the_rules() -> None:
    texts = (("user", "a"), ("assistant", "which one?"), ("user", "b"), ("assistant", "that"))
    talk = Example("i", tuple(Message(r, t) for r, t in texts), "shop", "t.csv:1")  # type: ignore[arg-type]
    task = declare(answer={"format": "text"})
    pair, plain = frame_of([replace(talk, rejected="not that one"), talk], task).to_dict("records")
    assert pair["rejected"] == "not that one" and pair["longest_answer"] == "not that one"
    assert pair["turns"] == ("a", "which one?", "b", "that", "not that one")
    assert (pair["asked"], pair["free_texts"]) == ("a\nb", ("which one?", "that"))
    assert plain["rejected"] is None or plain["rejected"] != plain["rejected"]
    assert plain["longest_answer"] == "which one?" and plain["conversation"] == pair["conversation"]


def test_blank_texts_and_missing_fields_are_null() -> None:
    frame = frame_of([row(1, prompt=" ", completion="no json"), row(2, completion="{}")], declare())
    assert frame["prompt"].isna().tolist() == [True, False]
    assert frame["field.intent"].isna().all()
    assert frame["free_texts"].tolist() == [(), ()]


def test_values_that_the_schema_declares_are_no_free_text() -> None:
    schema = {"properties": {"state": {"enum": ["TODO"]}, "notes": {"type": "array", "items": {"type": "string"}}}}
    task = declare(answer={"format": "json", "schema": schema})
    frame = frame_of([row(1, completion='{"state": "TODO", "notes": ["a", "b"]}')], task)
    assert frame["free_texts"].iloc[0] == ("a", "b")
    assert frame["field.notes"].iloc[0] == '["a", "b"]'


def test_no_rows_give_a_table_with_every_column() -> None:
    assert list(frame_of([], declare()).columns) == list(frame_of(rows(3), declare()).columns)
