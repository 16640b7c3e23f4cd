"""Rounds are stored with the verdicts, and a damaged file is named."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

import pytest

from finetune_pipeline.config import ReviewRules
from finetune_pipeline.errors import StorageError
from finetune_pipeline.records import Artifact
from finetune_pipeline.review.history import (
    ended_fingerprint,
    load_history,
    open_round,
    record_gate_result,
    round_of,
    rounds_folder,
)
from finetune_pipeline.review.rounds import GateResult, Round, rules_hash
from finetune_pipeline.review.verdict_store import verdicts_folder
from finetune_pipeline.store import TaskStore
from finetune_pipeline_tests.artifacts import example, finished, task

ROOT = Path(__file__).parents[2]
DRAWN = frozenset({("a", "1"), ("b", "2")})


def sample_of(store: TaskStore, drawn: Round) -> Artifact:
    return finished(store, "review_sample", {"sample.jsonl": [], "round.json": drawn.to_json()})


def failed(about: str = "v1") -> GateResult:
    return GateResult(False, 1, 2, about, rules_hash(ReviewRules()), "2026-01-05T10:00:00+00:00")


def test_a_round_is_stored_once_and_rows_drawn_later_are_added(store: TaskStore) -> None:
    first = sample_of(store, Round(1, 1, 7, "7", "cutoff", DRAWN, gone=1, population=9))
    assert round_of(first).population == 9
    open_round(store, first)
    open_round(store, sample_of(store, Round(1, 1, 7, "other", "other", frozenset({("c", "3")}))))
    (known,) = load_history(store).rounds
    assert known == Round(1, 1, 7, "7", "cutoff", DRAWN | {("c", "3")}), "salt and cutoff are those of the first draw"


def test_results_are_stored_in_order_and_none_twice(store: TaskStore) -> None:
    sample = sample_of(store, Round(1, drawn=DRAWN))
    for result in (failed(), failed(), failed("v2")):
        record_gate_result(store, sample, result)
    assert [result.about for result in load_history(store).results_in(1)] == ["v1", "v2"]


def test_with_recorded_verdicts_alone_only_a_failed_result_is_stored(store: TaskStore) -> None:
    sample = sample_of(store, Round(1, drawn=DRAWN))
    passed = GateResult(True, 2, 2, "v1", "rules", "t")
    record_gate_result(store, sample, passed)
    assert not rounds_folder(store).exists()
    record_gate_result(store, sample, failed())
    record_gate_result(store, sample, passed)
    assert [result.passed for result in load_history(store).results_in(1)] == [False, True]


def test_a_new_draw_is_due_when_data_or_rules_changed_since_the_gate_failed(store: TaskStore) -> None:
    clean = finished(store, "clean_examples", {"examples.jsonl": [example("a", "q", "a")]})
    before = ended_fingerprint(task(), store)
    sample = sample_of(store, Round(1, drawn=DRAWN))
    open_round(store, sample)
    assert ended_fingerprint(task(), store) == before, "a first verdict does not end the round"
    record_gate_result(store, sample, failed(clean.content_hash))
    assert ended_fingerprint(task(), store) == before, "unchanged data does not end the round"
    assert ended_fingerprint(task(review={"min_rows": 60}), store) != before
    finished(store, "clean_examples", {"examples.jsonl": [example("b", "q", "a")]})
    assert ended_fingerprint(task(), store) != before


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"number": 1}', '{"drawn": [["a"]]}', "[" * 100_000])
def test_a_damaged_file_is_named(store: TaskStore, text: str) -> None:
    path = rounds_folder(store) / "1.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(StorageError, match=r"1\.json.*is damaged"):
        load_history(store)


def test_a_sample_without_a_round_is_an_error_with_a_hint(store: TaskStore) -> None:
    with pytest.raises(StorageError, match=r"delete .*review_sample"):
        round_of(finished(store, "review_sample", {"sample.jsonl": []}))


@pytest.mark.parametrize("folder", [verdicts_folder, rounds_folder])
def test_verdicts_and_rounds_are_neither_ignored_by_git_nor_removed_by_make_clean(
    store: TaskStore, folder: object
) -> None:
    relative = Path(str(folder(store))).relative_to(Path(str(store.root)).parent)  # type: ignore[operator]
    assert str(relative).startswith("parcels/review/")
    ignored = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text().splitlines() if line.startswith("data/")]
    clean = (ROOT / "Makefile").read_text().partition("\nclean:\n\trm -rf ")[2].splitlines()[0].split()
    removed = [pattern for pattern in clean if pattern.startswith("data/")]
    assert ignored and removed
    for parent in (Path("data") / relative, *(Path("data") / relative).parents):
        assert not any(fnmatch(str(parent), pattern) for pattern in (*ignored, *removed) if pattern.count("/") == 2)
