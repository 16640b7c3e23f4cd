"""Where the experts' verdicts come in and lie until the gate reads them: one small JSON file per row and reviewer.

    review/verdicts/9f1c20e4a7b35d68-77ab01c2d3e4f506-3b1d9a2c4e5f6071.json     row, its content, the reviewer
    {"id": "9f1c20e4a7b35d68", "content_hash": "77ab01c2d3e4f506", "reviewer": "anna", "decision": "approve",
     "at": "2026-01-05T10:00:00+00:00", "completion": null, "note": "", "recorded": false}

They are people's work: they lie in the task's own `review/` folder and are committed with it, never among what the
pipeline makes and may make again.

One file each, because several experts write at the same time, on object stores too, where nothing can be appended. The
same reviewer's second verdict on the same content replaces the first. The content is part of the name: a verdict holds
for exactly what was shown, and is found again when a row returns to what it said before.

Recorded verdicts (given elsewhere, `review.recorded`) are a JSONL file of the same objects; `content` is required
there too, since an id alone does not say what the expert saw. They are marked `recorded` and say so in every report.

What it is not: the sample (assets.py), the gate (gate.py), or the web page (the desk).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from upath import UPath

from finetune_pipeline.config import ReviewRules, Task
from finetune_pipeline.errors import DataError, reading
from finetune_pipeline.records import Artifact, Example, Review, content_id, dumps
from finetune_pipeline.store import TaskStore, write_atomic

DECISIONS = ("approve", "reject", "edit")
RESTORE = "restore it from version control, or remove it and review again"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the review is. `done` rows have as many verdicts as the rules ask for, out of `total` rows; `approved`
    of them count as right as they were; `given` verdicts came in, `recorded` of them were given elsewhere; `missing`
    names the rows that still wait, in the sample's order."""

    done: int
    total: int
    approved: int
    given: int
    recorded: int
    missing: tuple[str, ...]

    @property
    def complete(self) -> bool:
        return self.total > 0 and not self.missing


def verdicts_folder(store: TaskStore) -> UPath:
    return store.review_folder / "verdicts"


def recorded_file(store: TaskStore, task: Task) -> UPath | None:
    """The declared file of recorded verdicts. DataError when it is declared and not there."""
    if task.review.recorded is None:
        return None
    path = store.root / task.review.recorded
    with reading(path):
        if path.exists():
            return path
    raise DataError(
        f"review.recorded names {path}, which does not exist",
        "correct the path (it is relative to the task's folder), or remove `review.recorded`",
    )


def save(store: TaskStore, review: Review) -> None:
    """Keep one verdict; replaces what the same reviewer said of the same content. DataError when it is incomplete."""
    _check(asdict(review), f"the verdict of {review.reviewer!r} on row {review.id}")
    write_atomic(verdicts_folder(store) / _name(review), dumps(asdict(review)))


def withdraw(store: TaskStore, review: Review) -> None:
    """Take a verdict back, as if it had not been given; nothing happens when there is none."""
    (verdicts_folder(store) / _name(review)).unlink(missing_ok=True)


def load(store: TaskStore, task: Task, sample: Artifact) -> list[Review]:
    """Every verdict that holds for the rows of `sample` as they are now: see `load_for`."""
    return load_for(store, task, list(sample.examples("sample.jsonl")))


def load_for(store: TaskStore, task: Task, rows: Sequence[Example]) -> list[Review]:
    """Every verdict that holds for these rows as they are now, in their order, then by reviewer.

    Verdicts on other rows or on other content are left out. Where a reviewer is both recorded and in the desk, the
    desk's verdict counts. DataError names a file or line that is damaged.
    """
    content = {row.id: row.content_hash for row in rows}
    by_row: dict[str, dict[str, Review]] = defaultdict(dict)
    for review in (*_recorded(recorded_file(store, task)), *_given(verdicts_folder(store), content)):
        if content.get(review.id) == review.content_hash:
            by_row[review.id][review.reviewer] = review
    return [by_row[row.id][name] for row in rows for name in sorted(by_row[row.id])]


def load_all(store: TaskStore, task: Task) -> dict[tuple[str, str], list[Review]]:
    """Every verdict that was ever given, by row id and content; also on rows that are no longer in the data. A declared
    file of recorded verdicts may be missing: before the first draw nobody knows which rows it has to be about."""
    declared = store.root / task.review.recorded if task.review.recorded else None
    with reading(declared):
        recorded = declared if declared is not None and declared.exists() else None
    found: dict[tuple[str, str], dict[str, Review]] = defaultdict(dict)
    for review in (*_recorded(recorded), *_given(verdicts_folder(store), None)):
        found[review.id, review.content_hash][review.reviewer] = review
    return {shown: list(by_reviewer.values()) for shown, by_reviewer in found.items()}


def progress(rows: Sequence[Example], reviews: Iterable[Review], rules: ReviewRules) -> Progress:
    """How far the review of the sample's `rows` is."""
    given = by_row(rows, reviews)
    missing = tuple(row.id for row in rows if len(given[row.id]) < rules.reviewers)
    late = set(missing)
    approved = sum(right(row, given[row.id]) for row in rows if row.id not in late)
    flat = [review for group in given.values() for review in group]
    recorded = sum(review.recorded for review in flat)
    return Progress(len(rows) - len(missing), len(rows), approved, len(flat), recorded, missing)


def todo(rows: Sequence[Example], reviews: Iterable[Review], rules: ReviewRules, reviewer: str) -> list[Example]:
    """The rows that still need a verdict and that `reviewer` has not judged, in the sample's order."""
    given = by_row(rows, reviews)
    return [
        row
        for row in rows
        if len(given[row.id]) < rules.reviewers and reviewer not in {review.reviewer for review in given[row.id]}
    ]


def by_row(rows: Sequence[Example], reviews: Iterable[Review]) -> dict[str, list[Review]]:
    """The verdicts of each row that hold for its present content; an empty list where there are none."""
    content = {row.id: row.content_hash for row in rows}
    found: dict[str, list[Review]] = {row.id: [] for row in rows}
    for review in reviews:
        if content.get(review.id) == review.content_hash:
            found[review.id].append(review)
    return found


def approves(row: Example, review: Review) -> bool:
    """Did this reviewer find the row right as it is? An edit that changes nothing is an approval."""
    return review.decision == "approve" or (review.decision == "edit" and review.completion == row.completion)


def right(row: Example, reviews: Sequence[Review]) -> bool:
    """A row counts as right when more than half of its reviewers approve it as it is; a tie does not."""
    return 2 * sum(approves(row, review) for review in reviews) > len(reviews)


def _name(review: Review) -> str:
    return f"{review.id}-{review.content_hash}-{content_id(review.reviewer)}.json"


def _given(folder: UPath, content: Mapping[str, str] | None) -> list[Review]:
    """The verdicts from the desk on exactly these rows, or on all; others are not even opened. One that is withdrawn
    after the folder was listed is none."""
    with reading(folder):
        paths = list(folder.iterdir()) if folder.exists() else []
    wanted = None if content is None else {f"{id_}-{shown}" for id_, shown in content.items()}
    files = sorted(path.name for path in paths if path.name.endswith(".json") and path.name[0] != ".")
    names = [name for name in files if wanted is None or name.rpartition("-")[0] in wanted]
    texts = ((folder / name, _text_if_given(folder / name)) for name in names)
    return [_parse(text, str(path)) for path, text in texts if text is not None]


def _text_if_given(path: UPath) -> str | None:
    with reading(path, RESTORE), suppress(FileNotFoundError):
        text: str = path.read_text(encoding="utf-8")
        return text
    return None


def _recorded(path: UPath | None) -> list[Review]:
    if path is None:
        return []
    lines = enumerate(_text(path).splitlines(), start=1)
    return [replace(_parse(line, f"{path}:{n}"), recorded=True) for n, line in lines if line.strip()]


def _text(path: UPath) -> str:
    with reading(path, RESTORE):
        text: str = path.read_text(encoding="utf-8")
    return text


def _parse(text: str, where: str) -> Review:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is no verdict: {error}", "fix the line, or remove it and review again") from error
    _check(row, where)
    return Review(**row)


def _check(row: Any, where: str) -> None:
    """DataError unless `row` is a complete verdict: no guessing about what an expert meant."""
    hint = "a verdict is {id, content_hash, reviewer, decision, at} with `completion` for an edit; fix it and try again"
    fields = row if isinstance(row, dict) else {}
    for name in ("id", "content_hash", "reviewer", "decision", "at"):
        if not isinstance(fields.get(name), str) or not fields[name].strip():
            raise DataError(f"{where} has no `{name}`", hint)
    unknown = sorted(set(fields) - set(Review.__slots__))
    if unknown:
        raise DataError(f"{where} has unknown fields: {', '.join(unknown)}", hint)
    if fields["decision"] not in DECISIONS:
        raise DataError(f"{where} says `decision: {fields['decision']}`", f"use one of {', '.join(DECISIONS)}")
    answer = fields.get("completion")
    if fields["decision"] == "edit" and not (isinstance(answer, str) and answer.strip()):
        raise DataError(f"{where} is an edit without the edited `completion`", hint)
