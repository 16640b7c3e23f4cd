"""The sample, the wait, and what the verdicts do to the data."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Container, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from finetune_pipeline.clean.row_cleaner import RowDropped
from finetune_pipeline.config import Task
from finetune_pipeline.errors import DataError, WaitingForPeople
from finetune_pipeline.materialize import materialize
from finetune_pipeline.records import Artifact, Example, Review, Silent, Verdict, read_jsonl
from finetune_pipeline.review import history, verdict_store
from finetune_pipeline.review.assets import expert_review, review_sample, reviews_fingerprint, settle
from finetune_pipeline.review.edits import Edits, without_personal, without_repeated
from finetune_pipeline.review.flagged import flagged_in, flagged_rows
from finetune_pipeline.store import TaskStore
from finetune_pipeline_tests.artifacts import example, finished, stage_context, task, task_store

FILES = ("sample.jsonl", "flagged.jsonl")
ROWS = [example(f"r{i:03}", f"question {i}", f"answer {i}") for i in range(40)]


def verdict(row: Example, decision: str = "approve", reviewer: str = "anna", answer: str | None = None) -> Review:
    return Review(row.id, row.content_hash, reviewer, decision, "2026-01-05T10:00:00+00:00", answer)  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskStore:
    return task_store(tmp_path, monkeypatch)


@pytest.fixture
def clean(store: TaskStore) -> Artifact:
    finished(store, "base_model", {"base_model.json": {}})
    return cleaned(store, ROWS)


def cleaned(store: TaskStore, rows: list[Example]) -> Artifact:
    artifact = finished(store, "clean_examples", {"examples.jsonl": rows})
    finished(
        store, "data_quality", {"rows.jsonl": []}, Verdict("data_quality", True, artifact.content_hash, "all right")
    )
    return artifact


def with_model(store: TaskStore, tiny_model: Path, **sections: Any) -> Task:
    """A declaration with a base model whose tokenizer is there: corrected rows are measured."""
    from finetune_pipeline.models.model_source import prepare

    declared = task(base={"path": str(tiny_model), "license": "apache-2.0"}, **sections)
    finished(store, "base_model", {"base_model.json": prepare(declared.base, store.task, Silent())[1]})
    return declared


def reviewed(store: TaskStore, declared: Task, wrong: Container[str] = ()) -> Artifact:
    """The experts give every verdict that is missing, and the gate says what it makes of them."""
    sample = materialize("review_sample", declared, store)
    known = {review.id for review in verdict_store.load(store, declared, sample)}
    for row in sample.examples("sample.jsonl"):
        if row.id not in known:
            verdict_store.save(store, verdict(row, "reject" if row.id in wrong else "approve"))
    return materialize("expert_review", declared, store)


def passed(artifact: Artifact) -> bool:
    assert artifact.verdict is not None
    return artifact.verdict.passed


def test_a_refused_data_set_does_not_pass_because_its_rejected_rows_were_repaired(
    store: TaskStore, clean: Artifact
) -> None:
    """80 % of the rows are right. What the experts reject is repaired at its source, nothing else; then all is tried
    again. When approved rows stayed in the sample, it was better than the data after one to three rounds."""
    dice = random.Random(7)
    rows = [example(f"r{i:03}", f"question {i}", f"answer {i}") for i in range(600)]
    bad = {row.id for row in dice.sample(rows, 120)}
    declared = task()
    seen: set[str] = set()
    for number in range(1, 6):
        cleaned(store, rows)
        gate = reviewed(store, declared, bad)
        assert not passed(gate), gate.verdict
        drawn = {row.id for row in store.current("review_sample").examples("sample.jsonl")}  # type: ignore[union-attr]
        assert not drawn & seen
        assert gate.verdict is not None and gate.verdict.summary.startswith(f"round {number}: ")
        seen |= drawn
        found = bad & drawn
        bad -= found
        rows = [replace(row, id=f"{row.id}+") if row.id in found else row for row in rows]


def test_good_data_passes_in_the_next_round(store: TaskStore, clean: Artifact) -> None:
    rows = [example(f"r{i:03}", f"question {i}", f"answer {i}") for i in range(300)]
    cleaned(store, rows)
    assert not passed(reviewed(store, task(), {row.id for row in rows[:100]}))
    assert not passed(reviewed(store, task(), {row.id for row in rows[:100]})), "a refusal stands"
    cleaned(store, [replace(row, id=f"{row.id}+") if row in rows[:100] else row for row in rows])
    again = reviewed(store, task())
    assert passed(again)
    assert again.summary["round"] == 2
    kept = {row.id for row in again.examples()}
    assert len(kept) == 300, "nothing is dropped: what was rejected is no longer there as it was"


def test_what_was_rejected_in_an_earlier_round_is_still_dropped(store: TaskStore, clean: Artifact) -> None:
    rows = [example(f"r{i:03}", f"question {i}", f"answer {i}") for i in range(300)]
    cleaned(store, rows)
    first = reviewed(store, task(), {row.id for row in rows[:100]})
    rejected = {drop["id"] for drop in read_jsonl(first.path("drops.jsonl"))}
    assert rejected
    cleaned(store, [*rows, example("new", "new", "new")])
    second = reviewed(store, task())
    assert passed(second)
    assert {drop["id"] for drop in read_jsonl(second.path("drops.jsonl"))} == rejected


def test_the_rounds_lie_with_the_verdicts_and_survive_that_all_artifacts_are_deleted(
    store: TaskStore, clean: Artifact
) -> None:
    declared = task()
    assert not passed(reviewed(store, declared, {row.id for row in ROWS}))
    written = sorted(path.name for path in Path(str(history.rounds_folder(store))).iterdir())
    assert written == ["1.decided.json", "1.json"]
    assert history.rounds_folder(store).parent == store.root / "review" == verdict_store.verdicts_folder(store).parent
    for folder in Path(str(store.root)).glob("[0-9]_*"):
        shutil.rmtree(folder)
    finished(store, "base_model", {"base_model.json": {}})
    cleaned(store, ROWS[1:])
    again = materialize("review_sample", declared, store)
    assert again.summary["round"] == 2


def test_rows_repaired_while_recorded_verdicts_are_incomplete_count_as_wrong(store: TaskStore, clean: Artifact) -> None:
    """Nothing is written into the task's folder for recorded verdicts, and yet the round is the same one."""
    declared = task(review={"recorded": "review/verdicts.jsonl"})
    drawn = list(materialize("review_sample", declared, store).examples("sample.jsonl"))
    store.review_folder.mkdir()
    said = [verdict(row, "reject" if row == drawn[0] else "approve") for row in drawn[:15]]
    (store.review_folder / "verdicts.jsonl").write_text("".join(json.dumps(asdict(one)) + "\n" for one in said))
    cleaned(store, [row for row in ROWS if row != drawn[0]])
    again = materialize("review_sample", declared, store)
    assert again.summary["gone"] == 1
    assert list(again.examples("sample.jsonl")) == drawn[1:]
    assert [path.name for path in store.review_folder.iterdir()] == ["verdicts.jsonl"]


def test_a_verdict_that_is_corrected_after_a_refusal_counts_and_is_told(store: TaskStore, clean: Artifact) -> None:
    declared = task()
    refused = reviewed(store, declared, {row.id for row in ROWS})
    assert not passed(refused)
    sample = store.current("review_sample")
    assert sample is not None
    for row in sample.examples("sample.jsonl"):
        verdict_store.save(store, replace(verdict(row), at="2999-01-01T00:00:00+00:00"))
    corrected = materialize("expert_review", declared, store)
    assert passed(corrected)
    assert corrected.verdict is not None
    told = [check.observed for check in corrected.verdict.checks if not check.passed]
    assert "20 of 20 verdicts are later" in told


def test_it_waits_and_says_how_far_it_is(store: TaskStore, clean: Artifact) -> None:
    declared = task()
    sample = materialize("review_sample", declared, store)
    for row in list(sample.examples("sample.jsonl"))[:12]:
        verdict_store.save(store, verdict(row))
    with pytest.raises(WaitingForPeople, match="12 of 20 rows") as caught:
        materialize("expert_review", declared, store)
    assert "desk" in caught.value.hint
    assert store.current("expert_review") is None


def test_new_verdicts_are_taken_up_and_the_same_ones_are_not_judged_twice(store: TaskStore, clean: Artifact) -> None:
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


def test_the_fingerprint_changes_with_a_recorded_file_too(store: TaskStore) -> None:
    declared = task(review={"recorded": "review/verdicts.jsonl"})
    path = Path(str(store.root)) / "review" / "verdicts.jsonl"
    missing = reviews_fingerprint(declared, store)
    path.parent.mkdir(parents=True)
    path.write_text("")
    empty = reviews_fingerprint(declared, store)
    path.write_text("\n")
    assert len({missing, empty, reviews_fingerprint(declared, store), reviews_fingerprint(task(), store)}) == 4


def test_a_verdict_that_is_withdrawn_while_all_are_hashed_is_none(
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


def test_edits_and_rejects_reach_the_data_and_the_ledger(
    store: TaskStore, clean: Artifact, tmp_path: Path, tiny_model: Path
) -> None:
    declared = with_model(store, tiny_model)
    sample = materialize("review_sample", declared, store)
    rows = list(sample.examples("sample.jsonl"))
    verdict_store.save(store, verdict(rows[0], "edit", answer="fixed"))
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
    assert not passed(made), "18 of 20 are less than 95 %, though both wrong rows have been dealt with"


def test_an_edit_goes_through_the_cleaning_like_every_row(store: TaskStore, clean: Artifact, tiny_model: Path) -> None:
    """The verdicts come from a file here: what the desk refuses at once, a file may hold."""
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
        verdict_store.save(store, replace(verdict(row, "edit", answer=edit), note="told by jo@example.com"))
    for row in rows[len(edits) :]:
        verdict_store.save(store, verdict(row))
    made = materialize("expert_review", declared, store)
    kept = {row.id: row.completion for row in made.examples()}
    assert kept[rows[0].id] == "<b>write</b> to <EMAIL>, or ring <PHONE>"
    assert kept[rows[1].id] == "café au lait"
    drops = {drop["id"]: (drop["reason"], drop["detail"]) for drop in read_jsonl(made.path("drops.jsonl"))}
    assert drops[rows[2].id] == (
        "edit-refused",
        "anna: completion-fits (it has to hold that the answer has text, and at most 60 characters)",
    )
    assert drops[rows[3].id][1].startswith("anna: too-long")
    assert drops[rows[5].id] == ("edit-refused", "anna: empty-completion")
    rules = {change["rule"] for change in read_jsonl(made.path("fixes.jsonl")) if change["id"] == rows[0].id}
    assert rules == {"expert-edit", "pii-email", "pii-phone", "answer-space"}
    assert not any("jo@example.com" in path.read_text("utf-8") for path in made.folder.iterdir())


def test_an_edit_that_repeats_another_row_takes_one_of_them_out(
    store: TaskStore, clean: Artifact, tiny_model: Path
) -> None:
    asked = "where is my parcel, it should have come on tuesday and nobody at your help desk answers"
    twins = [example(f"t{i}", f"{asked} {word} phone", f"answer {i}") for i, word in enumerate(("the", "a"))]
    cleaned(store, [*twins, *ROWS[:8]])
    declared = with_model(store, tiny_model)
    for row in materialize("review_sample", declared, store).examples("sample.jsonl"):
        edit = verdict(row, "edit", answer="answer 0") if row.id == "t1" else verdict(row)
        verdict_store.save(store, edit)
    made = materialize("expert_review", declared, store)
    (drop,) = read_jsonl(made.path("drops.jsonl"))
    assert (drop["id"], drop["stage"], drop["reason"]) == ("t1", "review", "near-duplicate")
    assert len(list(made.examples())) == 9


def test_an_edit_makes_no_twin_of_the_same_text_under_another_instruction() -> None:
    told = ("tell whether the customer is angry or complains about", "tell whether it is about a parcel or a driver or")
    head = "Read the following message of a customer, which came by the form of the shop, and "
    dice = random.Random(1)
    texts = [" ".join("".join(dice.choices("abcdefghijklmno", k=6)) for _ in range(9)) for _ in range(60)]
    rows = [
        example(f"{n}{i}", f"{head}{one} {text}", "yes") for n, text in enumerate(texts) for i, one in enumerate(told)
    ]
    assert without_repeated(rows, frozenset({"01", "11"}), task()) == (rows, [])
    again = example("again", f"{rows[0].prompt} please", "yes")
    kept, drops = without_repeated([*rows, again], frozenset({"again"}), task())
    assert (kept, [drop.id for drop in drops]) == (rows, ["again"])


def plain(row: Example, answer: str) -> tuple[Example, list[str]]:
    return row.with_completion(answer), []


def test_experts_who_disagree_take_the_row_out() -> None:
    row = ROWS[0]
    given = {row.id: [verdict(row), verdict(row, "edit", "bob", "other")]}
    settled = settle(ROWS, given, plain, task())
    assert [drop.reason for drop in settled.drops] == ["reviewers-disagree"]
    assert len(settled.kept) + len(settled.drops) == len(ROWS)


def test_two_of_three_with_the_same_edit_decide() -> None:
    row = ROWS[0]
    edits = [verdict(row, "edit", name, "other") for name in ("bob", "carla")]
    settled = settle(ROWS, {row.id: [verdict(row), *edits]}, plain, task())
    assert settled.kept[0].completion == "other"
    assert settled.fixes[0].detail == "bob, carla"


def test_an_edit_that_breaks_the_answer_format_takes_its_row_out_with_the_reason() -> None:
    declared = task(answer={"format": "label", "labels": ["delivery", "refund"]})
    row = example("x", "where is it?", "refund")
    given = {"x": [verdict(row, "edit", answer="shipping")]}
    settled = settle([row], given, Edits(declared).applied, declared)
    assert [(drop.reason, drop.detail) for drop in settled.drops] == [
        ("edit-refused", "anna: invalid-completion ('shipping' is not one of the 2 labels)")
    ]
    assert settle([row], {"x": [verdict(row, "edit", answer=" Delivery ")]}, Edits(declared).applied, declared).kept[
        0
    ] == row.with_completion("delivery")


def test_where_personal_data_drops_a_row_it_drops_an_edit() -> None:
    edits = Edits(task(clean={"personal_data": "drop"}))
    with pytest.raises(RowDropped, match="EMAIL"):
        edits.applied(ROWS[0], "write to jo@example.com")
    said = replace(verdict(ROWS[0], "edit", answer="jo@example.com"), note="said jo@example.com")
    kept = without_personal(said, task(clean={"personal_data": "drop"}))
    assert (kept.note, kept.completion) == ("said <EMAIL>", "<EMAIL>")
    assert without_personal(said, task(clean={"personal_data": "keep"})) == said


def test_nothing_to_draw_from_is_an_error(store: TaskStore, tmp_path: Path) -> None:
    empty = finished(store, "clean_examples", {"examples.jsonl": []})
    with pytest.raises(DataError, match="no rows"):
        review_sample(stage_context(task(), store, tmp_path, clean_examples=empty))


def test_conflicting_rows_are_flagged_beside_the_sample_and_decide_nothing(store: TaskStore, tmp_path: Path) -> None:
    pair = [example("x1", "where is my kettel", "a"), example("x2", "where is my kettle", "b")]
    rows = [*ROWS, *pair]
    lines = [{"rows": ["x1", "x2"], "origins": ["o", "p"], "similarity": 0.9}] * 12
    clean = finished(store, "clean_examples", {"examples.jsonl": rows, "conflicts.jsonl": lines})
    declared = task(review={"seed": 1})
    drawn = stage_context(declared, store, tmp_path, clean_examples=clean)
    outcome = review_sample(drawn)
    assert outcome.summary["flagged_pairs"] == 10
    files = {name: list(read_jsonl(drawn.out / name)) for name in FILES}
    plain = json.loads((drawn.out / "round.json").read_text("utf-8"))
    sample = finished(store, "review_sample", {**files, "round.json": plain})
    sampled = list(sample.examples("sample.jsonl"))
    flagged = flagged_rows(flagged_in(sample), sampled)
    assert {row.id for row in flagged} == {"x1", "x2"} - {row.id for row in sampled}
    for row in sampled:
        verdict_store.save(store, verdict(row))
    for row in pair[:1]:
        verdict_store.save(store, verdict(row, "reject"))
    job = stage_context(declared, store, tmp_path, clean_examples=clean, review_sample=sample)
    done = expert_review(job)
    assert done.verdict is not None
    assert done.verdict.figures["rows"] == len(sampled) == 20, "flagged rows are not in the estimate"
    assert done.verdict.figures["share"] == 1.0
    assert [row["id"] for row in read_jsonl(job.out / "drops.jsonl")] == ["x1"]
