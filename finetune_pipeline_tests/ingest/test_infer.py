"""What `finetune init` infers from a file, and that the task.yaml it writes declares exactly that."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from upath import UPath

from finetune_pipeline.config import load_task, task_from
from finetune_pipeline.errors import DataError, DeclarationError
from finetune_pipeline.ingest.infer import infer
from finetune_pipeline.ingest.scaffold import create, declaration

WORDS = [
    "where",
    "is",
    "my",
    "parcel",
    "when",
    "will",
    "it",
    "come",
    "i",
    "want",
    "money",
    "for",
    "a",
    "lamp",
    "please",
]


def sentence(random_: random.Random) -> str:
    return " ".join(random_.choices(WORDS, k=12))


def write(path: Path, columns: list[str], rows: list[list[Any]]) -> UPath:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return UPath(path)


@pytest.fixture
def labeled(tmp_path: Path) -> UPath:
    random_ = random.Random(1)
    labels = ["yes", "no", "null", "1", "on: off", "#x", "Ärger", "- dash", "1e3", "~"]
    rows = [[sentence(random_), labels[n % 10], f"c{n // 4}"] for n in range(200)]
    rows[0][1], rows[1][1], rows[2][1] = " YES ", "typo", ""
    return write(tmp_path / "my.csv", ["text", "category", "customer_id"], rows)


def test_labels_are_inferred_with_spellings_typing_errors_and_groups(labeled: UPath) -> None:
    inferred = infer(labeled)
    assert (inferred.layout, inferred.input, inferred.output, inferred.rows) == ("columns", "text", "category", 200)
    assert inferred.answer.format == "label"
    assert sorted(inferred.answer.labels) == sorted(
        ["yes", "no", "null", "1", "on: off", "#x", "Ärger", "- dash", "1e3", "~"]
    )
    assert inferred.groups == ("customer_id",)
    assert all(label in inferred.system for label in inferred.answer.labels)
    assert any("typo" in note for note in inferred.notes) and any(
        "1 completions are empty" in note for note in inferred.notes
    )


def test_the_declaration_loads_as_inferred_whatever_the_labels_look_like(labeled: UPath) -> None:
    inferred = infer(labeled)
    task = task_from(yaml.safe_load(declaration("my_task", inferred, "raw/my.csv")), "test")
    assert task.answer == inferred.answer
    assert task.prompt.system == inferred.system
    assert task.clean.max_tokens == inferred.max_tokens
    assert (task.sources[0].path, task.sources[0].input, task.sources[0].output) == ("raw/my.csv", "text", "category")
    assert task.base.license == "apache-2.0"


def test_json_of_several_columns_gets_a_schema_with_enums_nulls_and_numbers(tmp_path: Path) -> None:
    random_ = random.Random(2)
    rows = [
        [sentence(random_), random_.choice(["refund", "delivery"]), n % 7, "" if n % 3 else f"HV-{n:05}"]
        for n in range(150)
    ]
    path = write(tmp_path / "a.csv", ["message", "intent", "count", "order"], rows)
    inferred = infer(path, outputs=("intent", "count", "order"))
    assert inferred.answer.json_schema is not None
    assert inferred.answer.json_schema["properties"] == {
        "intent": {"enum": ["delivery", "refund"]},
        "count": {"type": "integer"},
        "order": {"type": ["string", "null"]},
    }
    assert inferred.answer.json_schema["required"] == ["intent", "count", "order"]
    assert inferred.answer.slice_by == "intent"
    assert task_from(yaml.safe_load(declaration("t", inferred, "raw/a.csv")), "test").answer == inferred.answer


def test_json_answers_in_conversations_are_inferred_without_rare_values(tmp_path: Path) -> None:
    random_ = random.Random(3)
    lines = []
    for n in range(120):
        answer: dict[str, Any] = {"intent": random_.choice(["a", "b", "c"]), "tags": ["x"], "who": {"age": n}}
        if n == 5:
            answer |= {"intent": "typo", "extra": 1}
        turns = [{"role": "user", "content": sentence(random_)}, {"role": "assistant", "content": json.dumps(answer)}]
        lines.append(json.dumps({"messages": turns}))
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, "broken"]), "utf-8")
    inferred = infer(UPath(tmp_path / "a.jsonl"))
    schema = inferred.answer.json_schema
    assert schema is not None and schema["properties"]["intent"] == {"enum": ["a", "b", "c"]}
    assert schema["properties"]["who"]["properties"] == {"age": {"type": "integer"}}
    assert "extra" not in schema["properties"]
    assert inferred.dropped == {"invalid-json": 1}
    text = declaration("t", inferred, "raw/a.jsonl")
    assert "rows: messages" in text and "typo" in text and "invalid-json: 1" in text


def test_free_text_and_long_rows(tmp_path: Path) -> None:
    random_ = random.Random(4)
    rows = [[sentence(random_), " ".join(sentence(random_) for _ in range(40))] for _ in range(40)]
    rows[0][0] = "long " * 2000
    inferred = infer(write(tmp_path / "a.csv", ["question", "answer"], rows))
    assert inferred.answer.format == "text"
    assert inferred.max_tokens >= 4096
    task = task_from(yaml.safe_load(declaration("t", inferred, "raw/a.csv")), "test")
    assert task.quality.max_prompt_chars >= 10_000


def test_errors_name_the_columns_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", ["body", "kind"], [["hi", "x"]])
    with pytest.raises(DataError, match=r"lacks the columns 'text', 'category'; it has: body, kind"):
        infer(path, "text", "category")
    with pytest.raises(DataError, match="does not exist"):
        infer(UPath(tmp_path / "none.csv"))
    with pytest.raises(DataError, match="has no row that is an example"):
        infer(write(tmp_path / "b.csv", ["text", "label"], []))


def test_create_writes_a_task_once(labeled: UPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_DATA", str(tmp_path / "data"))
    path = create("my_task", Path(str(labeled)), "text", "category")
    assert load_task(Path(str(path.parent))).sources[0].path == "raw/my.csv"
    assert (path.parent / "raw" / "my.csv").read_bytes() == labeled.read_bytes()
    with pytest.raises(DeclarationError, match="exists already"):
        create("my_task", Path(str(labeled)))
    with pytest.raises(DeclarationError, match="one problem"):
        create("My-Task", Path(str(labeled)))
    assert not (tmp_path / "data" / "My-Task").exists()


def test_pairs_are_named_and_the_longer_of_both_answers_counts(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n}", "chosen": "kind", "rejected": "rude " * 500} for n in range(9)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    found = infer(UPath(tmp_path / "p.jsonl"))
    assert found.layout == "preference" and found.max_tokens == 1024
    assert found.notes == ("9 rows have a rejected answer beside the chosen one, for preference training",)


def test_bad_rows_that_become_part_of_a_pair_are_not_lost(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "completion": c, "label": label} for c, label in (("a", True), ("b", False), ("c", False))]
    (tmp_path / "k.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    found = infer(UPath(tmp_path / "k.jsonl"))
    assert found.layout == "unpaired"
    assert found.notes[1:] == ("1 of 3 rows cannot be read and will be dropped (no-good-completion: 1)",)
    assert "    rows: unpaired\n" in declaration("t", found, "raw/k.jsonl")
