"""The two assets: the sample, the wait for verdicts, the gate over several rounds, and the reviewed data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune_pipeline.config import Task
from finetune_pipeline.errors import DataError, WaitingForPeople
from finetune_pipeline.materialize import materialize
from finetune_pipeline.records import Artifact, Silent, read_jsonl
from finetune_pipeline.review import verdict_store
from finetune_pipeline.review.assets import expert_review, review_sample, reviews_fingerprint
from finetune_pipeline.review.flagged import flagged_in, flagged_rows
from finetune_pipeline.store import TaskStore
from finetune_pipeline_tests.artifacts import example, finished, stage_context, task
from finetune_pipeline_tests.review.verdicts import ROWS, cleaned, passed, verdict

FILES = ("sample.jsonl", "flagged.jsonl")


def with_model(store: TaskStore, tiny_model: Path, **sections: Any) -> Task:
    """A declaration with a base model, whose tokenizer counts the tokens of edited rows."""
    from finetune_pipeline.models.model_source import prepare

    declared = task(base={"path": str(tiny_model), "license": "apache-2.0"}, **sections)
    finished(store, "base_model", {"base_model.json": prepare(declared.base, store.task, Silent())[1]})
    return declared


def test_it_waits_for_people_and_reports_its_progress(store: TaskStore, clean: Artifact) -> None:
    declared = task()
    sample = materialize("review_sample", declared, store)
    for row in list(sample.examples("sample.jsonl"))[:12]:
        verdict_store.save(store, verdict(row))
    with pytest.raises(WaitingForPeople, match="12 of 20 rows") as caught:
        materialize("expert_review", declared, store)
    assert "desk" in caught.value.hint
    assert store.current("expert_review") is None


def test_new_verdicts_make_a_new_artifact_and_the_same_verdicts_do_not(store: TaskStore, clean: Artifact) -> None:
    declared = task()
    rows = list(materialize("review_sample", declared, store).examples("sample.jsonl"))
    for row in rows:
        verdict_store.save(store, verdict(row))
    first = materialize("expert_review", declared, store)
    assert first.verdict is not None
    assert first.verdict.passed
    assert first.verdict.about == clean.content_hash
    assert materialize("expert_review", declared, store).key == first.key
    for row in rows[:2]:
        verdict_store.save(store, verdict(row, "reject"))
    second = materialize("expert_review", declared, store)
    assert second.key != first.key
    assert second.verdict is not None
    assert not second.verdict.passed


def test_the_fingerprint_changes_with_the_file_of_recorded_verdicts(store: TaskStore) -> None:
    declared = task(review={"recorded": "review/verdicts.jsonl"})
    path = Path(str(store.root)) / "review" / "verdicts.jsonl"
    missing = reviews_fingerprint(declared, store)
    path.parent.mkdir(parents=True)
    path.write_text("")
    empty = reviews_fingerprint(declared, store)
    path.write_text("\n")
    assert len({missing, empty, reviews_fingerprint(declared, store), reviews_fingerprint(task(), store)}) == 4


def test_a_verdict_that_is_withdrawn_during_hashing_does_not_count(
    store: TaskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdict_store.save(store, verdict(ROWS[1]))
    without = reviews_fingerprint(task(), store)
    verdict_store.save(store, verdict(ROWS[0]))
    assert reviews_fingerprint(task(), store) != without
    listed = type(store.root).glob

    def withdrawing(folder: Path, pattern: str) -> Iterator[Path]:
        paths = list(listed(folder, pattern))
        verdict_store.withdraw(store, verdict(ROWS[0]))
        return iter(paths)

    monkeypatch.setattr(type(store.root), "glob", withdrawing)
    read = type(store.root).exists
    monkeypatch.setattr(type(store.root), "exists", lambda path: path.suffix == ".json" or read(path))
    assert reviews_fingerprint(task(), store) == without


def test_edits_and_rejections_are_applied_and_in_the_ledger(
    store: TaskStore, clean: Artifact, tmp_path: Path, tiny_model: Path
) -> None:
    declared = with_model(store, tiny_model)
    sample = materialize("review_sample", declared, store)
    rows = list(sample.examples("sample.jsonl"))
    verdict_store.save(store, verdict(rows[0], "edit", completion="fixed"))
    verdict_store.save(store, verdict(rows[1], "reject"))
    for row in rows[2:]:
        verdict_store.save(store, verdict(row))
    made = materialize("expert_review", declared, store)
    kept = {row.id: row for row in made.examples()}
    assert len(kept) == 39
    assert kept[rows[0].id].completion == "fixed"
    assert [(d["id"], d["reason"]) for d in read_jsonl(made.path("drops.jsonl"))] == [(rows[1].id, "expert-rejected")]
    assert [(c["id"], c["rule"]) for c in read_jsonl(made.path("fixes.jsonl"))] == [(rows[0].id, "expert-edit")]
    assert len(list(read_jsonl(made.path("reviews.jsonl")))) == 20
    assert not passed(made), "18 of 20 are less than 95 %, though one wrong row was edited and one dropped"


def test_an_edit_is_cleaned_and_checked_like_every_row(store: TaskStore, clean: Artifact, tiny_model: Path) -> None:
    """These verdicts are in files: a file may hold edits that the desk would reject."""
    declared = with_model(store, tiny_model, clean={"max_tokens": 200}, quality={"max_completion_chars": 60})
    rows = list(materialize("review_sample", declared, store).examples("sample.jsonl"))
    edits = [
        "<b>write</b> to jo@example.com, or ring +44 7700 900123 ",
        "cafÃ© au lait",
        "x" * 61,
        "several words " * 200,
        rows[6].completion,
        "\u200b\u200b",
    ]
    for row, edit in zip(rows, edits, strict=False):
        verdict_store.save(store, replace(verdict(row, "edit", completion=edit), note="from jo@example.com"))
    for row in rows[len(edits) :]:
        verdict_store.save(store, verdict(row))
    made = materialize("expert_review", declared, store)
    kept = {row.id: row.completion for row in made.examples()}
    assert kept[rows[0].id] == "<b>write</b> to <EMAIL>, or ring <PHONE>"
    assert kept[rows[1].id] == "café au lait"
    drops = {drop["id"]: (drop["reason"], drop["detail"]) for drop in read_jsonl(made.path("drops.jsonl"))}
    assert drops[rows[2].id] == (
        "edit-refused",
        "anna: completion-fits (required: the answer has at most 60 characters)",
    )
    assert drops[rows[3].id][1].startswith("anna: too-long")
    assert drops[rows[5].id] == ("edit-refused", "anna: empty-completion")
    rules = {fix["rule"] for fix in read_jsonl(made.path("fixes.jsonl")) if fix["id"] == rows[0].id}
    assert rules == {"expert-edit", "pii-email", "pii-phone", "completion-space"}
    assert not any("jo@example.com" in path.read_text("utf-8") for path in made.folder.iterdir())


def test_an_edit_that_makes_two_rows_near_duplicates_drops_one_of_them(
    store: TaskStore, clean: Artifact, tiny_model: Path
) -> None:
    text = "where is my parcel, it should have come on tuesday and nobody at your help desk answers"
    similar = [example(f"t{i}", f"{text} {word} phone", f"completion {i}") for i, word in enumerate(("the", "a"))]
    cleaned(store, [*similar, *ROWS[:8]])
    declared = with_model(store, tiny_model)
    for row in materialize("review_sample", declared, store).examples("sample.jsonl"):
        edit = verdict(row, "edit", completion="completion 0") if row.id == "t1" else verdict(row)
        verdict_store.save(store, edit)
    made = materialize("expert_review", declared, store)
    (drop,) = read_jsonl(made.path("drops.jsonl"))
    assert (drop["id"], drop["stage"], drop["reason"]) == ("t0", "review", "near-duplicate")  # the edited one is a pair
    assert len(list(made.examples())) == 9


def test_without_rows_the_draw_is_an_error(store: TaskStore, tmp_path: Path) -> None:
    empty = finished(store, "clean_examples", {"examples.jsonl": []})
    with pytest.raises(DataError, match="no rows"):
        review_sample(stage_context(task(), store, tmp_path, clean_examples=empty))


def test_conflicting_rows_are_flagged_and_do_not_count_in_the_gate(store: TaskStore, tmp_path: Path) -> None:
    pair = [example("x1", "where is my kettel", "a"), example("x2", "where is my kettle", "b")]
    rows = [*ROWS, *pair]
    lines = [{"rows": ["x1", "x2"], "origins": ["o", "p"], "similarity": 0.9}] * 12
    clean = finished(store, "clean_examples", {"examples.jsonl": rows, "conflicts.jsonl": lines})
    declared = task(review={"seed": 1})
    sampling = stage_context(declared, store, tmp_path, clean_examples=clean)
    result = review_sample(sampling)
    assert result.summary["flagged_pairs"] == 10
    files = {name: list(read_jsonl(sampling.out / name)) for name in FILES}
    round_json = json.loads((sampling.out / "round.json").read_text("utf-8"))
    sample = finished(store, "review_sample", {**files, "round.json": round_json})
    sampled = list(sample.examples("sample.jsonl"))
    flagged = flagged_rows(flagged_in(sample), sampled)
    assert {row.id for row in flagged} == {"x1", "x2"} - {row.id for row in sampled}
    for row in sampled:
        verdict_store.save(store, verdict(row))
    for row in pair[:1]:
        verdict_store.save(store, verdict(row, "reject"))
    reviewing = stage_context(declared, store, tmp_path, clean_examples=clean, review_sample=sample)
    done = expert_review(reviewing)
    assert done.verdict is not None
    assert done.verdict.figures["rows"] == len(sampled) == 20, "flagged rows are not in the estimate"
    assert done.verdict.figures["share"] == 1.0
    assert [row["id"] for row in read_jsonl(reviewing.out / "drops.jsonl")] == ["x1"]
