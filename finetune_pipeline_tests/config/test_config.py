"""Validation of the declaration: every problem is reported, with key, value and hint."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import pytest

from finetune_pipeline.config import Train, load_task, task_from
from finetune_pipeline.errors import DeclarationError

MINIMAL: dict[str, Any] = {
    "name": "tickets",
    "sources": [{"path": "raw/tickets.csv"}],
    "base": {"path": "/models/small", "license": "apache-2.0"},
}


def problems(**sections: Any) -> tuple[str, ...]:
    with pytest.raises(DeclarationError) as caught:
        task_from(MINIMAL | sections, "task.yaml")
    return caught.value.problems


def test_a_declaration_round_trips_through_json() -> None:
    task = task_from(MINIMAL | {"answer": {"format": "json", "schema": {"type": "object"}}}, "task.yaml")
    assert task_from(task.model_dump(mode="json", by_alias=True), "again") == task


def test_all_problems_are_reported_together() -> None:
    messages = problems(
        name="My Task",
        base={"hub": "owner/model", "license": "mit"},
        sources=[{"path": "a.csv"}, {"path": "b.csv", "hub": "owner/data"}],
        split={"test": 0.45, "validation": 0.4},
        train={"num_epochs": 0, "lora": {"r": "many"}},
        qualty={"mostly": 0.9},
    )
    keys = {problem.split(":")[0] for problem in messages}
    assert keys == {"name", "base", "sources.1", "split", "train.num_epochs", "train.lora.r", "qualty"}
    assert len(messages) == 7


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"qualty": {}}, "qualty: unknown key. Did you mean `quality`?"),
        ({"train": {"learning_rat": 1}}, "train.learning_rat: unknown key. Did you mean `learning_rate`?"),
        ({"sources": [{"path": "x", "inptu": "a"}]}, "sources.0.inptu: unknown key. Did you mean `input`?"),
        ({"answer": {"shema": {}}}, "answer.shema: unknown key. Did you mean `schema`?"),
    ],
)
def test_an_unknown_key_is_an_error_that_suggests_the_similar_key(sections: dict[str, Any], expected: str) -> None:
    assert problems(**sections) == (expected,)


def test_an_unknown_key_without_a_similar_one_lists_the_known_keys() -> None:
    assert problems(split={"zzz": 1})[0].startswith("split.zzz: unknown key. Known keys: test, validation")


def test_a_value_out_of_bounds_is_shown() -> None:
    assert problems(quality={"mostly": 95}) == ("quality.mostly: Input should be less than or equal to 1 (it is 95)",)


@pytest.mark.parametrize("revision", [None, "main", "a1b2c3d"])
def test_a_hub_model_without_a_full_commit_hash_is_an_error(revision: str | None) -> None:
    (problem,) = problems(base={"hub": "owner/model", "revision": revision, "license": "mit"})
    assert "`hub: owner/model` needs `revision`, a full commit hash" in problem
    assert "your measurements are no longer valid" in problem


def test_a_hub_model_with_its_commit_is_accepted() -> None:
    base = {"hub": "owner/model", "revision": "0123456789abcdef0123456789abcdef01234567", "license": "mit"}
    assert task_from(MINIMAL | {"base": base}, "task.yaml").base.hub == "owner/model"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"format": "json"}, "needs `schema`"),
        ({"format": "label", "labels": ["one"]}, "needs `labels`, two or more"),
        ({"format": "json", "schema": {"type": "objekt"}}, "is not a valid JSON Schema"),
    ],
)
def test_an_incomplete_answer_format_is_an_error(answer: dict[str, Any], expected: str) -> None:
    assert expected in problems(answer=answer)[0]


@pytest.mark.parametrize(
    "reference",
    [
        "https://example.com/intent.json",
        "intent.json",
        "file:///etc/passwd",
        "http://[",
        "#/$defs/gone",
        "#gone",
        "#/$defs/a/enum",
        "#/$defs/a/enum/x",
        "#/$defs/a/minLength/x",
    ],
)
def test_a_schema_reference_outside_the_schema_is_an_error(reference: str) -> None:
    target = {"enum": ["x"], "minLength": 1}
    directly = {"$defs": {"a": target}, "properties": {"n": {"items": {"$ref": reference}}}}
    indirectly = {"$defs": {"a": target}, "$ref": "#/components/b", "components": {"b": {"not": {"$ref": reference}}}}
    for schema in (directly, indirectly):
        (problem,) = problems(answer={"format": "json", "schema": schema})
        assert problem.startswith(f"answer: `schema` refers to {reference}, which is not a schema within it")


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"child": {"$ref": "#"}, "$ref": {"type": "string"}}},
        {"$defs": {"a": {"$anchor": "here", "type": "object"}}, "$ref": "#here"},
        {"$id": "https://example.com/a", "$defs": {"b": {"$id": "b", "not": {"$ref": "a"}}}, "$ref": "b"},
        {"$ref": "https://json-schema.org/draft/2020-12/schema"},
        {"const": {"$ref": "https://example.com/is-a-value"}},
    ],
)
def test_a_schema_reference_within_the_schema_is_accepted(schema: dict[str, Any]) -> None:
    task_from(MINIMAL | {"answer": {"format": "json", "schema": schema}}, "task.yaml")


def test_a_schema_nested_too_deeply_is_an_error() -> None:
    schema: dict[str, Any] = {}
    for _ in range(45):
        schema = {"properties": {"a": schema}}
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 250)
    try:
        (problem,) = problems(answer={"format": "json", "schema": schema})
    finally:
        sys.setrecursionlimit(limit)
    assert problem.startswith("answer: `schema` is nested too deeply: put its parts under `$defs`")


def test_a_task_is_frozen() -> None:
    task = task_from(MINIMAL, "task.yaml")
    with pytest.raises(ValueError, match="frozen"):
        task.train.num_epochs = 3  # type: ignore[misc]


def test_a_task_is_read_from_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "tickets"
    folder.mkdir()
    with pytest.raises(DeclarationError, match=r"task\.yaml does not exist"):
        load_task(folder)
    (folder / "task.yaml").write_text(
        "name: tickets\nsources: [{path: a.csv}]\nbase: {path: m, license: mit}\n", "utf-8"
    )
    assert load_task(folder).name == "tickets"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: [", "not valid YAML"),
        ("", "is not a mapping"),
        ("- a\n- b", "is not a mapping"),
        ("name: other\nsources: [{path: a}]\nbase: {path: m, license: mit}", "but its folder is tickets"),
    ],
)
def test_a_file_that_is_not_a_declaration_is_an_error(tmp_path: Path, text: str, expected: str) -> None:
    folder = tmp_path / "tickets"
    folder.mkdir()
    (folder / "task.yaml").write_text(text, "utf-8")
    with pytest.raises(DeclarationError, match=expected):
        load_task(folder)


def test_a_folder_named_task_yaml_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "tickets" / "task.yaml").mkdir(parents=True)
    with pytest.raises(DeclarationError, match="cannot be read"):
        load_task(tmp_path / "tickets")


@pytest.mark.parametrize(
    "line", ["0 6 * * 1", "*/15 8-18 * * MON-FRI", "7 * * * *", "@weekly", "@daily", "0 0 1,15 * *"]
)
def test_a_valid_cron_line_is_accepted_by_dagster(line: str) -> None:
    import dagster as dg

    assert task_from(MINIMAL | {"automation": {"schedule": line}}, "task.yaml").automation.schedule == line
    assert dg.ScheduleDefinition(job_name="j", cron_schedule=line).cron_schedule == line


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("0 25 * * 1", "Bad hour"),
        ("every monday", "five fields"),
        ("", "five fields"),
        ("0 6 * * 1 2026", "five fields"),
        ("61 * * * *", "Bad minute"),
        ("0 0 30 2 *", "Bad day"),
        ("@sometimes", "five fields"),
        ("0 6 * * 5-1", "Bad day-of-week"),
    ],
)
def test_an_invalid_cron_line_is_an_error(line: str, expected: str) -> None:
    (problem,) = problems(automation={"schedule": line})
    assert problem.startswith("automation.schedule: ")
    assert expected in problem


@pytest.mark.parametrize("text", ["description: 2026-13-45", "description: !!int abc", "a: &a [*a]", "[" * 5000])
def test_invalid_yaml_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "task.yaml").write_text(text, "utf-8")
    with pytest.raises(DeclarationError):
        load_task(tmp_path)


@pytest.mark.parametrize("owner", ["team:support", "team:data platform", "anna.b+x@example.org"])
def test_a_valid_owner_is_valid_in_dagster_too(owner: str) -> None:
    import dagster as dg

    assert task_from(MINIMAL | {"owners": [owner]}, "task.yaml").owners == (owner,)
    assert list(dg.AssetSpec("a", owners=[owner]).owners) == [owner]


@pytest.mark.parametrize("owner", ["anna", "team:", "team: ", "anna@example", "a b@example.org", "", "x@y.z", "@a.org"])
def test_an_invalid_owner_is_an_error(owner: str) -> None:
    (problem,) = problems(owners=["team:support", owner])
    assert problem.startswith("owners: ") and "`team:support`" in problem


def test_where_a_training_runs_changes_no_key() -> None:
    elsewhere = Train.model_validate({"backend": {"kind": "torchrun", "processes_per_node": 4}})
    assert elsewhere.result_values() == Train().result_values()
