"""The asset raw_examples on real files: every row is an example or a drop, ids are stable, errors name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_pipeline.errors import DataError
from finetune_pipeline.ingest.assets import raw_examples, sources_fingerprint
from finetune_pipeline.ingest.groups import group_of
from finetune_pipeline.ingest.sources import problems, remarks
from finetune_pipeline.materialize import materialize
from finetune_pipeline.records import Example, read_jsonl
from finetune_pipeline.store import StageResult, TaskStore, file_hashes, sha256_file
from finetune_pipeline_tests.artifacts import stage_context, task, task_store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskStore:
    store = task_store(tmp_path, monkeypatch)
    (Path(str(store.root)) / "raw").mkdir(parents=True)
    return store


def write_raw(store: TaskStore, name: str, text: str) -> None:
    (Path(str(store.root)) / "raw" / name).write_text(text, "utf-8")


def run_asset(
    store: TaskStore, tmp_path: Path, *sources: dict[str, Any]
) -> tuple[StageResult, list[Example], list[dict[str, Any]]]:
    context = stage_context(task(sources=list(sources)), store, tmp_path)
    result = raw_examples(context)
    examples = [Example.from_json(row) for row in read_jsonl(context.out / "examples.jsonl")]
    return result, examples, list(read_jsonl(context.out / "drops.jsonl"))


def test_every_row_of_every_file_is_accounted_for(store: TaskStore, tmp_path: Path) -> None:
    write_raw(store, "a.csv", "text,label,who\nhi,x,c1\nho,,c2\n,y,c3\n")
    write_raw(store, "b.jsonl", '{"prompt": "a", "completion": "b"}\nbroken\n{"prompt": "a"}\n')
    write_raw(store, "c.jsonl", '{"prompt": "p", "chosen": "good", "rejected": "bad"}\n')
    write_raw(store, "wrong.csv", "no,body\n1,hello\n2,there\n")
    result, examples, drops = run_asset(
        store,
        tmp_path,
        {"path": "raw/a.csv", "group": "who"},
        {"path": "raw/[bc].jsonl", "name": "lines"},
        {"path": "raw/wrong.csv", "input": "text", "output": "label"},
    )
    assert [(e.prompt, e.completion, e.source, e.origin, e.group) for e in examples] == [
        ("hi", "x", "a", "a.csv:2", group_of("c1")),
        ("ho", "", "a", "a.csv:3", group_of("c2")),
        ("a", "b", "lines", "b.jsonl:1", None),
        ("p", "good", "lines", "c.jsonl:1", None),
    ]
    assert [(d["origin"], d["reason"]) for d in drops] == [
        ("a.csv:4", "no-prompt"),
        ("b.jsonl:2", "invalid-json"),
        ("b.jsonl:3", "missing-column"),
        ("wrong.csv:2", "missing-column"),
        ("wrong.csv:3", "missing-column"),
    ]
    assert result.summary["rows"] == 9 == len(examples) + len(drops)
    files: Any = result.summary["files"]
    assert files[-1]["problem"] == "lacks the columns 'text', 'label'; it has: no, body"
    assert result.verdict is not None and result.verdict.passed and result.verdict.about == "key"


def test_a_preference_row_is_one_example_with_its_rejected_completion_and_its_group(
    store: TaskStore, tmp_path: Path
) -> None:
    write_raw(store, "c.jsonl", '{"prompt": "p", "chosen": "good", "rejected": "bad", "who": "c1"}\n')
    result, (row,), _ = run_asset(store, tmp_path, {"path": "raw/c.jsonl", "group": "who"})
    assert (row.prompt, row.completion, row.rejected, row.group) == ("p", "good", "bad", group_of("c1"))
    assert result.summary["pairs"] == 1
    assert row.id == "c76b2ac8f3c1dc4e"  # the id of such a row never changes


def test_rows_without_a_preference_have_no_such_key(store: TaskStore, tmp_path: Path) -> None:
    write_raw(store, "a.csv", "text,label\nhi,x\n")
    _, (row,), _ = run_asset(store, tmp_path, {"path": "raw/a.csv"})
    text = (tmp_path / "out0" / "examples.jsonl").read_text("utf-8")
    assert "rejected" not in text and row.rejected is None
    assert sorted(path.name for path in (tmp_path / "out0").iterdir()) == ["drops.jsonl", "examples.jsonl"]


def unpaired(*rows: tuple[str, str, Any]) -> str:
    return "".join(json.dumps({"prompt": p, "completion": c, "label": label}) + "\n" for p, c, label in rows)


def test_good_and_bad_rows_of_one_prompt_become_pairs_and_every_row_is_accounted_for(
    store: TaskStore, tmp_path: Path
) -> None:
    rows = [
        ("a", "rude", False),
        ("a", "kind", True),
        ("b", "fine", True),
        ("c", "wrong", False),
        ("a", "also kind", True),
        ("a", "ruder", False),
        ("a", "rudest", False),
    ]
    write_raw(store, "k.jsonl", unpaired(*rows))
    result, examples, drops = run_asset(store, tmp_path, {"path": "raw/k.jsonl"})
    assert [(e.completion, e.rejected) for e in examples] == [("kind", "rude"), ("fine", None), ("also kind", "ruder")]
    assert [(d["origin"], d["reason"], d["detail"]) for d in drops if d["reason"] == "merged-into-pair"] == [
        ("k.jsonl:1", "merged-into-pair", "the rejected completion of k.jsonl:2"),
        ("k.jsonl:6", "merged-into-pair", "the rejected completion of k.jsonl:5"),
    ]
    assert [d["origin"] for d in drops if d["reason"] == "no-good-completion"] == ["k.jsonl:4", "k.jsonl:7"]
    files: Any = result.summary["files"]
    assert (files[0]["layout"], files[0]["rows"], files[0]["merged"]) == ("unpaired", 7, 2)
    assert result.summary["pairs"] == 2


def test_the_id_of_a_good_row_does_not_change_when_a_bad_one_is_added(store: TaskStore, tmp_path: Path) -> None:
    write_raw(store, "k.jsonl", unpaired(("a", "kind", True)))
    _, (before,), _ = run_asset(store, tmp_path, {"path": "raw/k.jsonl"})
    write_raw(store, "k.jsonl", unpaired(("a", "rude", False), ("a", "kind", True)))
    _, (after,), _ = run_asset(store, tmp_path, {"path": "raw/k.jsonl"})
    assert (before.id, before.rejected, after.rejected) == (after.id, None, "rude")
    assert before.content_hash != after.content_hash  # a review was about the row without it


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_label_that_is_no_flag_is_no_preference(store: TaskStore, tmp_path: Path, suffix: str) -> None:
    lines = {"csv": "prompt,completion,label\na,kind,good\n", "jsonl": unpaired(("a", "kind", 1))}
    write_raw(store, f"k.{suffix}", lines[suffix])
    result, (row,), _ = run_asset(store, tmp_path, {"path": f"raw/k.{suffix}"})
    files: Any = result.summary["files"]
    assert files[0]["layout"] == "columns: prompt → completion" and row.completion == "kind"


def test_flags_of_a_csv_and_a_damaged_label(store: TaskStore, tmp_path: Path) -> None:
    write_raw(store, "k.csv", "prompt,completion,label\na,kind,True\na,rude,FALSE\nb,x,maybe\n")
    _, (row,), drops = run_asset(store, tmp_path, {"path": "raw/k.csv", "rows": "unpaired"})
    assert (row.completion, row.rejected) == ("kind", "rude")
    assert [(d["origin"], d["reason"]) for d in drops] == [
        ("k.csv:3", "merged-into-pair"),
        ("k.csv:4", "wrong-layout"),
    ]


def test_groups_that_differ_in_spelling_are_one_and_are_written_as_hashes_only(
    store: TaskStore, tmp_path: Path
) -> None:
    customers = [
        "jo@example.com",
        " Jo@Example.COM ",
        "ｊｏ@example.com",
        "al@example.com",
        "Anna  Schmidt",
        "anna schmidt",
        " ",
    ]
    lines = [json.dumps({"prompt": f"q{n}", "completion": "x", "who": who}) for n, who in enumerate(customers)]
    write_raw(store, "a.jsonl", "\n".join(lines) + "\n")
    _, examples, _ = run_asset(store, tmp_path, {"path": "raw/a.jsonl", "group": "who"})
    groups = [row.group for row in examples]
    assert groups[0] == groups[1] == groups[2] != groups[3]
    assert groups[4] == groups[5] not in (groups[0], groups[3])
    assert groups[6] is None
    written = "".join(path.read_text("utf-8") for path in (tmp_path / "out0").glob("*.jsonl")).casefold()
    assert "example.com" not in written and "schmidt" not in written


def test_ids_do_not_change_when_rows_are_added_and_differ_for_repeated_content(
    store: TaskStore, tmp_path: Path
) -> None:
    write_raw(store, "a.csv", "text,label\nhi,x\nhi,x\nho,y\n")
    _, before, _ = run_asset(store, tmp_path, {"path": "raw/a.csv"})
    assert len({e.id for e in before}) == 3
    write_raw(store, "a.csv", "text,label\nnew,z\nhi,x\nnew,w\nhi,x\nho,y\n")
    _, after, _ = run_asset(store, tmp_path, {"path": "raw/a.csv"})
    assert {e.id for e in before} <= {e.id for e in after}
    write_raw(store, "b.csv", "text,label\nhi,x\n")
    _, other, _ = run_asset(store, tmp_path, {"path": "raw/b.csv"})
    assert not {e.id for e in other} & {e.id for e in after}


@pytest.mark.parametrize(
    ("files", "sources", "message"),
    [
        ({}, [{"path": "raw/none.csv"}], r"raw/none.csv, which does not exist"),
        ({"a.csv": "text,label\nhi,x\n"}, [{"path": "raw/none.csv"}], r"there is: a.csv"),
        ({}, [{"path": "raw/*.csv"}], r"no file matches"),
        ({"a.csv": ""}, [{"path": "raw/a.csv"}], r"the data set is empty, no rows in: raw/a.csv"),
        ({"a.csv": "text,label\n"}, [{"path": "raw/a.csv"}], r"the data set is empty, no rows in: raw/a.csv"),
        ({"a.csv": "no,body\n1,hi\n"}, [{"path": "raw/*.csv", "input": "x"}], r"the column 'x'; it has: no, body"),
        ({"a.jsonl": "x\ny\n"}, [{"path": "raw/a.jsonl"}], r"invalid-json: 2"),
    ],
)  # fmt: skip
def test_sources_without_any_example_are_an_error_with_a_hint(
    store: TaskStore, tmp_path: Path, files: dict[str, str], sources: list[dict[str, Any]], message: str
) -> None:
    for name, text in files.items():
        write_raw(store, name, text)
    with pytest.raises(DataError, match=message) as error:
        run_asset(store, tmp_path, *sources)
    assert error.value.hint


def test_the_fingerprint_depends_on_every_byte_and_never_fails(store: TaskStore) -> None:
    declared = task(sources=[{"path": "raw/*.csv"}])
    missing = sources_fingerprint(declared, store)
    write_raw(store, "a.csv", "text,label\nhi,x\n")
    first = sources_fingerprint(declared, store)
    write_raw(store, "a.csv", "text,label\nhi,y\n")
    second = sources_fingerprint(declared, store)
    write_raw(store, "b.csv", "text,label\n")
    assert len({missing, first, second, sources_fingerprint(declared, store)}) == 4


def test_the_fingerprint_of_an_unchanged_source_reads_no_file(
    store: TaskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sensors compute it every minute, and the desk with every page."""
    read: list[Path] = []

    def recorded(path: Path) -> str:
        read.append(path)
        return sha256_file(path)

    monkeypatch.setattr(file_hashes, "SETTLED_SECONDS", -1.0)
    monkeypatch.setattr(file_hashes, "sha256_file", recorded)
    write_raw(store, "a.csv", "text,label\nhi,x\n")
    write_raw(store, "b.csv", "text,label\nho,y\n")
    declared = task(sources=[{"path": "raw/*.csv"}])
    assert len({sources_fingerprint(declared, store) for _ in range(5)}) == 1
    assert len(read) == 2
    write_raw(store, "b.csv", "text,label\nha,y\n")
    sources_fingerprint(declared, store)
    assert [path.name for path in read[2:]] == ["b.csv"]


def test_materialize_reads_again_only_when_a_file_changes(store: TaskStore) -> None:
    declared = task(sources=[{"path": "raw/a.csv"}])
    write_raw(store, "a.csv", "text,label\nhi,x\n")
    first = materialize("raw_examples", declared, store)
    assert materialize("raw_examples", declared, store).manifest == first.manifest
    write_raw(store, "a.csv", "text,label\nhi,y\n")
    assert materialize("raw_examples", declared, store).content_hash != first.content_hash


def test_problems_name_unreadable_files_and_remarks_files_that_lack_columns(store: TaskStore) -> None:
    write_raw(store, "a.csv", "text,label\nhi,x\n")
    write_raw(store, "b.csv", "no,body\n1,hi\n")
    both = task(sources=[{"path": "raw/a.csv"}, {"path": "raw/b.csv"}])
    assert problems(both, store) == []
    assert ["raw/b.csv lacks" in remark for remark in remarks(both, store)] == [True]
    alone = task(sources=[{"path": "raw/b.csv"}, {"path": "raw/none.csv"}])
    assert ["none.csv" in problem for problem in problems(alone, store)] == [True]
    assert "lacks a column with the completion" in problems(task(sources=[{"path": "raw/b.csv"}]), store)[0]


def test_unusual_characters_are_written_and_read_unchanged(store: TaskStore, tmp_path: Path) -> None:
    unusual = 'line\u2028break "quoted" \\ tab\t 👍 \ud83d'
    write_raw(store, "a.jsonl", json.dumps({"prompt": unusual, "completion": "x"}) + "\n")
    _, examples, _ = run_asset(store, tmp_path, {"path": "raw/a.jsonl"})
    assert examples[0].prompt.startswith('line\u2028break "quoted" \\ tab\t 👍')
