"""The sample, the wait, and what the verdicts do to the data."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_pipeline.config import AnswerFormat, ReviewRules
from finetune_pipeline.errors import DataError, WaitingForPeople
from finetune_pipeline.materialise import materialise
from finetune_pipeline.records import Artifact, Example, Review, Verdict, read_jsonl
from finetune_pipeline.review import inbox
from finetune_pipeline.review.assets import draw, expert_review, review_sample, reviews_fingerprint, settle
from finetune_pipeline.review.flagged import flagged_in, flagged_rows
from finetune_pipeline.store import TaskStore
from finetune_pipeline_tests.artifacts import example, finished, task, task_store, work

FILES = ("sample.jsonl", "flagged.jsonl")
ROWS = [example(f"r{i:03}", f"question {i}", f"answer {i}") for i in range(40)]


def verdict(row: Example, decision: str = "approve", reviewer: str = "anna", answer: str | None = None) -> Review:
    return Review(row.id, row.content, reviewer, decision, "2026-01-05T10:00:00+00:00", answer)  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskStore:
    return task_store(tmp_path, monkeypatch)


@pytest.fixture
def clean(store: TaskStore) -> Artifact:
    artifact = finished(store, "clean_examples", {"examples.jsonl": ROWS})
    finished(store, "data_quality", {"rows.jsonl": []}, Verdict("data_quality", True, artifact.content, "all right"))
    return artifact


@pytest.mark.parametrize(("rows", "drawn"), [(5, 5), (40, 20), (195, 20), (201, 21), (1000, 100), (9000, 500)])
def test_ten_percent_but_neither_too_few_nor_too_many(rows: int, drawn: int) -> None:
    many = [example(f"r{i}", "q", "a") for i in range(rows)]
    assert len(draw(many, ReviewRules())) == drawn


def test_the_sample_does_not_depend_on_order_and_does_on_the_seed() -> None:
    first = draw(ROWS, ReviewRules())
    assert draw(list(reversed(ROWS)), ReviewRules()) == first
    assert draw(ROWS, ReviewRules(seed=8)) != first


def test_added_rows_leave_most_of_the_sample() -> None:
    rows = [example(f"r{i}", "q", "a") for i in range(1000)]
    more = [example(f"new{i}", "q", "a") for i in range(100)]
    before, after = draw(rows, ReviewRules()), draw(rows + more, ReviewRules())
    assert len(set(before) - set(after)) <= 20, "each leaves only by being overtaken by one that is new"
    assert {row.id for row in set(after) - set(before)} & {row.id for row in more}


def test_every_row_is_as_likely_as_any_other() -> None:
    rows = [example(f"r{i}", "q", "a") for i in range(20)]
    times = dict.fromkeys((row.id for row in rows), 0)
    for seed in range(400):
        for row in draw(rows, ReviewRules(fraction=0.5, min_rows=1, seed=seed)):
            times[row.id] += 1
    assert all(150 < count < 250 for count in times.values()), times  # 200 expected, five standard deviations


def test_it_waits_and_says_how_far_it_is(store: TaskStore, clean: Artifact) -> None:
    declared = task()
    sample = materialise("review_sample", declared, store)
    for row in list(sample.examples("sample.jsonl"))[:12]:
        inbox.save(store, verdict(row))
    with pytest.raises(WaitingForPeople, match="12 of 20 rows") as caught:
        materialise("expert_review", declared, store)
    assert "desk" in caught.value.cure
    assert store.current("expert_review") is None


def test_new_verdicts_are_taken_up_and_the_same_ones_are_not_judged_twice(store: TaskStore, clean: Artifact) -> None:
    declared = task()
    rows = list(materialise("review_sample", declared, store).examples("sample.jsonl"))
    for row in rows:
        inbox.save(store, verdict(row))
    first = materialise("expert_review", declared, store)
    assert first.verdict is not None
    assert first.verdict.passed
    assert first.verdict.about == clean.content
    assert materialise("expert_review", declared, store).key == first.key
    for row in rows[:2]:
        inbox.save(store, verdict(row, "reject"))
    second = materialise("expert_review", declared, store)
    assert second.key != first.key
    assert second.verdict is not None
    assert not second.verdict.passed


def test_the_fingerprint_changes_with_a_recorded_file_too(store: TaskStore) -> None:
    declared = task(review={"recorded": "review/verdicts.jsonl"})
    path = Path(str(store.root)) / "review" / "verdicts.jsonl"
    missing = reviews_fingerprint(declared, store)
    path.parent.mkdir(parents=True)
    path.write_text("")
    empty = reviews_fingerprint(declared, store)
    path.write_text("\n")
    assert len({missing, empty, reviews_fingerprint(declared, store), reviews_fingerprint(task(), store)}) == 4


def test_edits_and_rejects_reach_the_data_and_the_ledger(store: TaskStore, clean: Artifact, tmp_path: Path) -> None:
    sampled = work(task(), store, tmp_path, clean_examples=clean)
    review_sample(sampled)
    sample = finished(store, "review_sample", {"sample.jsonl": read_jsonl(sampled.out / "sample.jsonl")})
    rows = list(sample.examples("sample.jsonl"))
    inbox.save(store, verdict(rows[0], "edit", answer="mended"))
    inbox.save(store, verdict(rows[1], "reject"))
    for row in rows[2:]:
        inbox.save(store, verdict(row))
    judged = work(task(), store, tmp_path, clean_examples=clean, review_sample=sample)
    outcome = expert_review(judged)
    kept = {row["id"]: row for row in read_jsonl(judged.out / "examples.jsonl")}
    assert len(kept) == 39
    assert kept[rows[0].id]["messages"][-1]["content"] == "mended"
    assert [(d["id"], d["reason"]) for d in read_jsonl(judged.out / "drops.jsonl")] == [(rows[1].id, "expert-rejected")]
    assert [(c["id"], c["rule"]) for c in read_jsonl(judged.out / "changes.jsonl")] == [(rows[0].id, "expert-edit")]
    assert len(list(read_jsonl(judged.out / "reviews.jsonl"))) == 20
    assert outcome.verdict is not None
    assert not outcome.verdict.passed, "18 of 20 are less than 95 %, though both wrong rows have been dealt with"


def test_experts_who_disagree_take_the_row_out() -> None:
    row = ROWS[0]
    given = {row.id: [verdict(row), verdict(row, "edit", "bob", "other")]}
    settled = settle(ROWS, given, AnswerFormat())
    assert [drop.reason for drop in settled.drops] == ["experts-disagree"]
    assert len(settled.kept) + len(settled.drops) == len(ROWS)


def test_two_of_three_with_the_same_edit_decide() -> None:
    row = ROWS[0]
    edits = [verdict(row, "edit", name, "other") for name in ("bob", "carla")]
    settled = settle(ROWS, {row.id: [verdict(row), *edits]}, AnswerFormat())
    assert settled.kept[0].answer == "other"
    assert settled.changes[0].detail == "bob, carla"


def test_an_edit_that_breaks_the_answer_format_is_refused() -> None:
    labels = AnswerFormat(format="label", labels=("delivery", "refund"))
    row = example("x", "where is it?", "refund")
    with pytest.raises(DataError, match=r"anna's edit of row x \(test.csv:x\)"):
        settle([row], {"x": [verdict(row, "edit", answer="shipping")]}, labels)


def test_nothing_to_draw_from_is_an_error(store: TaskStore, tmp_path: Path) -> None:
    empty = finished(store, "clean_examples", {"examples.jsonl": []})
    with pytest.raises(DataError, match="no rows"):
        review_sample(work(task(), store, tmp_path, clean_examples=empty))


def test_conflicting_rows_are_flagged_beside_the_sample_and_decide_nothing(store: TaskStore, tmp_path: Path) -> None:
    pair = [example("x1", "where is my kettel", "a"), example("x2", "where is my kettle", "b")]
    rows = [*ROWS, *pair]
    lines = [{"rows": ["x1", "x2"], "origins": ["o", "p"], "similarity": 0.9}] * 12
    clean = finished(store, "clean_examples", {"examples.jsonl": rows, "conflicts.jsonl": lines})
    declared = task(review={"seed": 1})
    drawn = work(declared, store, tmp_path, clean_examples=clean)
    outcome = review_sample(drawn)
    assert outcome.summary["flagged_pairs"] == 10
    sample = finished(store, "review_sample", {name: list(read_jsonl(drawn.out / name)) for name in FILES})
    sampled = list(sample.examples("sample.jsonl"))
    flagged = flagged_rows(flagged_in(sample), sampled)
    assert {row.id for row in flagged} == {"x1", "x2"} - {row.id for row in sampled}
    for row in sampled:
        inbox.save(store, verdict(row))
    for row in pair[:1]:
        inbox.save(store, verdict(row, "reject"))
    job = work(declared, store, tmp_path, clean_examples=clean, review_sample=sample)
    done = expert_review(job)
    assert done.verdict is not None
    assert done.verdict.figures["rows"] == len(sampled) == 20, "flagged rows are not in the estimate"
    assert done.verdict.figures["share"] == 1.0
    assert [row["id"] for row in read_jsonl(job.out / "drops.jsonl")] == ["x1"]
