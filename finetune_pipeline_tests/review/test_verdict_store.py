"""Verdicts are stored one by one, from several reviewers and from a file, and hold only for what was shown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from finetune_pipeline.config import ReviewRules
from finetune_pipeline.errors import DataError, StorageError
from finetune_pipeline.records import Artifact, Example
from finetune_pipeline.review import verdict_store
from finetune_pipeline.store import TaskStore
from finetune_pipeline_tests.artifacts import example, finished, task
from finetune_pipeline_tests.review.verdicts import verdict

ROWS = [example(f"r{i}", f"prompt {i}", f"completion {i}") for i in range(4)]


@pytest.fixture
def sample(store: TaskStore) -> Artifact:
    return finished(store, "review_sample", {"sample.jsonl": ROWS})


def test_saved_verdicts_are_loaded_in_the_order_of_the_sample(store: TaskStore, sample: Artifact) -> None:
    saved = [verdict(ROWS[2], "edit", completion="better"), verdict(ROWS[0], reviewer="bob"), verdict(ROWS[0])]
    for review in saved:
        verdict_store.save(store, review)
    assert verdict_store.load(store, task(), sample) == [saved[2], saved[1], saved[0]]


def test_a_second_verdict_of_the_same_reviewer_replaces_the_first(store: TaskStore, sample: Artifact) -> None:
    verdict_store.save(store, verdict(ROWS[0]))
    verdict_store.save(store, verdict(ROWS[0], "reject"))
    assert [review.decision for review in verdict_store.load(store, task(), sample)] == ["reject"]
    verdict_store.withdraw(store, verdict(ROWS[0]))
    assert verdict_store.load(store, task(), sample) == []


def test_a_verdict_holds_only_for_the_content_that_was_shown(store: TaskStore, sample: Artifact) -> None:
    verdict_store.save(store, verdict(ROWS[0]))
    changed = finished(store, "review_sample", {"sample.jsonl": [ROWS[0].with_completion("another"), *ROWS[1:]]})
    assert verdict_store.load(store, task(), changed) == []
    assert len(verdict_store.load(store, task(), sample)) == 1, "and applies again when the row has that content again"


def test_names_of_reviewers_may_contain_any_character(store: TaskStore, sample: Artifact) -> None:
    names = ["Ána López/QA", "../../x", "a", "A"]
    for name in names:
        verdict_store.save(store, verdict(ROWS[0], reviewer=name))
    assert sorted(r.reviewer for r in verdict_store.load(store, task(), sample)) == sorted(names)
    assert {p.parent for p in Path(str(store.root)).rglob("*.json")} >= {
        Path(str(verdict_store.verdicts_folder(store)))
    }
    assert not list(Path(str(store.root)).parent.glob("x*"))


def test_recorded_verdicts_are_marked_and_replaced_by_those_of_the_desk(store: TaskStore, sample: Artifact) -> None:
    stale = replace(verdict(ROWS[1]), content_hash="0" * 16)
    _record(store, [asdict(verdict(ROWS[0], "reject")), asdict(verdict(ROWS[2])), asdict(stale)])
    verdict_store.save(store, verdict(ROWS[0]))
    declared = task(review={"recorded": "review/verdicts.jsonl"})
    found = [(r.id, r.decision, r.recorded) for r in verdict_store.load(store, declared, sample)]
    assert found == [("r0", "approve", False), ("r2", "approve", True)]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"id": "r0", "reviewer": "a", "decision": "approve", "at": "x"}', "no `content_hash`"),
        ('{"id": "r0", "content_hash": "c", "reviewer": "a", "decision": "fine", "at": "x"}', "decision: fine"),
        ('{"id": "r0", "content_hash": "c", "reviewer": "a", "decision": "edit", "at": "x"}', "edited `completion`"),
        (
            '{"id": "r0", "content_hash": "c", "reviewer": "a", "decision": "reject", "at": "x", "z": 1}',
            "unknown fields: z",
        ),
        ("approve", "is not a verdict"),
        ("3", "no `id`"),
    ],
)
def test_a_damaged_recorded_line_is_named(store: TaskStore, sample: Artifact, line: str, problem: str) -> None:
    _record(store, [asdict(verdict(ROWS[0])), line])
    with pytest.raises(DataError, match=problem) as caught:
        verdict_store.load(store, task(review={"recorded": "review/verdicts.jsonl"}), sample)
    assert "verdicts.jsonl:2" in str(caught.value)


@pytest.mark.parametrize("rows", [ROWS[1:2], ROWS[:2], ROWS[2:]])
def test_a_verdict_that_is_withdrawn_during_reading_does_not_count(
    store: TaskStore, sample: Artifact, monkeypatch: pytest.MonkeyPatch, rows: list[Example]
) -> None:
    for row in ROWS[:2]:
        verdict_store.save(store, verdict(row))
    listed = type(store.root).iterdir

    def withdrawing(folder: Path) -> Iterator[Path]:
        paths = list(listed(folder))
        verdict_store.withdraw(store, verdict(ROWS[0]))
        return iter(paths)

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(type(store.root), "iterdir", withdrawing)
        assert verdict_store.load_for(store, task(), rows) == [verdict(row) for row in rows if row == ROWS[1]]
        verdict_store.save(store, verdict(ROWS[0]))
        assert verdict_store.load_all(store, task()) == {(ROWS[1].id, ROWS[1].content_hash): [verdict(ROWS[1])]}


def test_a_damaged_verdict_file_is_named(store: TaskStore, sample: Artifact) -> None:
    verdict_store.save(store, verdict(ROWS[0]))
    path = next(Path(str(verdict_store.verdicts_folder(store))).iterdir())
    path.write_bytes(b"\xff")
    with pytest.raises(StorageError, match=f"{path.name} is damaged"):
        verdict_store.load(store, task(), sample)
    path.write_text("[" * 100_000)
    with pytest.raises(DataError, match=f"{path.name} is not a verdict"):
        verdict_store.load(store, task(), sample)


def test_a_missing_recorded_file_is_an_error(store: TaskStore, sample: Artifact) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl"):
        verdict_store.load(store, task(review={"recorded": "nowhere.jsonl"}), sample)


def test_an_incomplete_verdict_is_not_saved(store: TaskStore, sample: Artifact) -> None:
    with pytest.raises(DataError, match="edited `completion`"):
        verdict_store.save(store, verdict(ROWS[0], "edit"))
    assert verdict_store.load(store, task(), sample) == []


def test_progress_counts_rows_with_all_their_verdicts() -> None:
    rules = ReviewRules(reviewers=2)
    given = [verdict(ROWS[0]), verdict(ROWS[0], "approve", "bob"), verdict(ROWS[1]), verdict(ROWS[2], "reject")]
    state = verdict_store.progress(ROWS, [*given, verdict(ROWS[2], "approve", "bob")], rules)
    assert (state.done, state.total, state.right, state.verdicts) == (2, 4, 1, 5), "a tie is not right"
    assert state.missing == ("r1", "r3")
    assert not state.complete


def test_todo_lists_no_row_that_the_reviewer_has_reviewed() -> None:
    rules = ReviewRules(reviewers=2)
    given = [verdict(ROWS[0]), verdict(ROWS[1]), verdict(ROWS[1], "approve", "bob")]
    assert [row.id for row in verdict_store.todo(ROWS, given, rules, "anna")] == ["r2", "r3"]
    assert [row.id for row in verdict_store.todo(ROWS, given, rules, "bob")] == ["r0", "r2", "r3"]


def _record(store: TaskStore, lines: list[object]) -> None:
    path = store.root / "review" / "verdicts.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines) + "\n", encoding="utf-8")
