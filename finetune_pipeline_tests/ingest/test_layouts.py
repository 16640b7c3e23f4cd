"""Every row layout is recognized, or declared; a row that deviates from it is invalid, with a reason."""

from __future__ import annotations

import json
from typing import Any

import pytest

from finetune_pipeline.config import Source
from finetune_pipeline.ingest.conversations import conversation
from finetune_pipeline.ingest.layouts import Layout, MissingColumns, layout_of
from finetune_pipeline.ingest.turns import InvalidRow

TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]

AWAY = [TURNS[0], {"role": "assistant", "content": "go away"}]
HH = "\n\nHuman: hi\n\nAssistant"


def read(row: dict[str, Any], schema: dict[str, Any] | None = None, **declared: Any) -> list[tuple[str, str]]:
    layout = layout_of(tuple(row), Source(path="x", **declared))
    assert isinstance(layout, Layout), layout
    return [(m.role, m.content) for m in conversation(row, layout, schema).messages]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "hi", "completion": "hello"},
        {"Question": "hi", "Answer": "hello"},
        {"input": "hi", "output": "hello", "id": 3},
        {"text": "hi", "label": "hello"},
        {"instruction": "hi", "input": "", "output": "hello"},
        {"instruction": "hi", "response": "hello"},
        {"messages": TURNS},
        {"messages": json.dumps(TURNS)},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}, TURNS[1]]},
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
        {"prompt": "hi", "chosen": "hello", "rejected": "go away"},
        {"chosen": TURNS, "rejected": [TURNS[0], {"role": "assistant", "content": "go away"}]},
    ],
)
def test_layouts_are_recognized(row: dict[str, Any]) -> None:
    assert read(row) == [("user", "hi"), ("assistant", "hello")]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "hi", "chosen": "hello", "rejected": "go away"},
        {"prompt": TURNS[:1], "chosen": TURNS[1:], "rejected": AWAY[1:]},
        {"chosen": TURNS, "rejected": AWAY},
        {"prompt": "hi", "chosen": TURNS, "rejected": AWAY},
        {"chosen": json.dumps(TURNS), "rejected": json.dumps(AWAY)},
        {"chosen": f"{HH}: hello", "rejected": f"{HH}: go away"},
        {"prompt": f"{HH}:", "chosen": " hello", "rejected": "go away"},
    ],
)
def test_every_layout_of_a_preference_has_prompt_chosen_and_rejected(row: dict[str, Any]) -> None:
    layout = layout_of(tuple(row), Source(path="x"))
    assert isinstance(layout, Layout)
    found = conversation(row, layout, None)
    assert [(m.role, m.content.strip()) for m in found.messages] == [("user", "hi"), ("assistant", "hello")]
    assert found.rejected == "go away"


def test_a_transcript_keeps_all_turns_and_the_rejected_answer_is_the_last() -> None:
    start = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: who\n\nare you?\n\nAssistant:"
    found = conversation({"chosen": f"{start} a bot ", "rejected": f"{start} nobody"}, Layout("preference"), None)
    assert [(m.role, m.content) for m in found.messages] == [
        ("user", "hi"),
        ("assistant", "hello"),
        ("user", "who\n\nare you?"),
        ("assistant", "a bot"),
    ]
    assert found.rejected == "nobody"


def test_answers_that_are_json_or_speak_of_humans_stay_texts() -> None:
    listed = '[{"name": "Lumo"}]'
    found = conversation({"prompt": "list", "chosen": listed, "rejected": "Human: none"}, Layout("preference"), None)
    assert (found.messages[-1].content, found.rejected) == (listed, "Human: none")


def test_alpaca_concatenates_instruction_and_input() -> None:
    assert read({"instruction": "translate", "input": "hi", "output": "salut"})[0] == ("user", "translate\n\nhi")


def test_messages_keep_system_and_turns() -> None:
    turns = [{"role": "system", "content": "be kind"}, *TURNS, *TURNS]
    assert [role for role, _ in read({"messages": turns})] == ["system", "user", "assistant", "user", "assistant"]


def test_declared_columns_take_precedence_over_usual_names() -> None:
    row = {"instruction": "constant", "input": "hi", "output": "no", "category": "hello"}
    assert read(row, input="input", output="category") == [("user", "hi"), ("assistant", "hello")]


def test_several_outputs_become_one_json_completion_with_the_types_of_the_schema() -> None:
    types = {"n": "integer", "ok": "boolean", "o": ["string", "null"], "t": "string"}
    schema = {"properties": {name: {"type": type_} for name, type_ in types.items()}}
    row = {"text": "hi", "t": "12", "o": "", "n": "3", "ok": "True"}
    completion = read(row, schema, outputs=("n", "ok", "o", "t"))[1][1]
    assert completion == '{"n": 3, "ok": true, "o": null, "t": "12"}'
    assert read(row | {"n": "x"}, schema, outputs=("n",))[1][1] == '{"n": "x"}'  # cleaning drops it with the reason
    assert read({"text": "hi", "n": "", "o": ""}, schema, outputs=("n", "o"))[1][1] == ""  # all empty


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [TURNS[0]]}, "no-completion"),
        ({"messages": [*TURNS, TURNS[0]]}, "no-completion"),
        ({"messages": [TURNS[1]]}, "no-prompt"),
        ({"messages": []}, "no-prompt"),
        ({"messages": [TURNS[0], *TURNS]}, "wrong-layout"),
        ({"messages": [{"role": "wizard", "content": "hi"}]}, "wrong-layout"),
        ({"messages": "no json"}, "wrong-layout"),
        ({"messages": [TURNS[0], {"role": "assistant", "content": None}]}, "no-completion"),
        ({"prompt": None, "completion": "x"}, "no-prompt"),
        ({"prompt": "  ", "completion": "x"}, "no-prompt"),
        ({"prompt": "hi", "completion": None}, "no-completion"),
        ({"chosen": TURNS, "rejected": [TURNS[1], TURNS[1]]}, "wrong-layout"),
        ({"chosen": TURNS, "rejected": "go away"}, "wrong-layout"),
        ({"chosen": "hello", "rejected": "go away"}, "no-prompt"),
        ({"chosen": "\n\nHuman: hi\n\nAssistant: a", "rejected": "\n\nHuman: ho\n\nAssistant: b"}, "wrong-layout"),
        ({"chosen": f"{HH}: a\n\nAssistant: b", "rejected": f"{HH}: a\n\nAssistant: c"}, "wrong-layout"),
        ({"prompt": "hi", "chosen": "hello", "rejected": None}, "no-completion"),
    ],
)
def test_rows_that_are_not_examples_are_invalid_with_a_reason(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidRow) as invalid:
        read(row)
    assert invalid.value.reason == reason


def test_a_key_that_only_this_row_lacks_is_a_missing_column() -> None:
    with pytest.raises(InvalidRow, match="missing-column"):
        conversation({"prompt": "hi"}, Layout("columns", "prompt", "completion"), None)


def test_an_empty_completion_is_valid_here() -> None:
    assert read({"prompt": "hi", "completion": ""})[1] == ("assistant", "")


@pytest.mark.parametrize(
    ("columns", "declared", "needed"),
    [
        (("no", "body", "category"), {"input": "message", "output": "category"}, "the column 'message'"),
        (("a", "b"), {}, "a column with the prompt"),
        (("text", "b"), {}, "a column with the completion"),
        (("text", "label"), {"rows": "messages"}, "the column 'messages'"),
        (("text", "label"), {"group": "customer"}, "the group column 'customer'"),
    ],
)
def test_files_without_their_columns_name_what_they_need(
    columns: tuple[str, ...], declared: dict[str, Any], needed: str
) -> None:
    layout = layout_of(columns, Source(path="x", **declared))
    assert isinstance(layout, MissingColumns)
    assert needed in layout.needed
