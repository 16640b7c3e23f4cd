"""Store the experts' verdicts: one small JSON file per row and reviewer, until the gate reads them.

    review/verdicts/9f1c20e4a7b35d68-77ab01c2d3e4f506-3b1d9a2c4e5f6071.json     row, its content, the reviewer
    {"id": "9f1c20e4a7b35d68", "content_hash": "77ab01c2d3e4f506", "reviewer": "anna", "decision": "approve",
     "at": "2026-01-05T10:00:00+00:00", "completion": null, "note": "", "recorded": false}

Verdicts are people's work: they are in the task's `review/` folder and committed with it, apart from the artifacts that
the pipeline can make again.

There is one file for each, because several experts write at the same time, and object stores cannot append. A second
verdict of the same reviewer on the same content replaces the first. The content hash is part of the name: a verdict
holds for exactly what was shown, and applies again when a row returns to that content.

Recorded verdicts (given elsewhere, `review.recorded`) are a JSONL file of the same objects. `content_hash` is required
there too, since an id alone does not identify what the expert saw. They are marked `recorded`, and every report counts
them separately.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

from upath import UPath

from finetune_pipeline.config import ReviewRules, Task
from finetune_pipeline.errors import DataError, reading
from finetune_pipeline.records import Artifact, Example, Review, ReviewDecision, content_id, dumps
from finetune_pipeline.review.rounds import RowVersion
from finetune_pipeline.store import TaskStore, write_atomic

DECISIONS: tuple[ReviewDecision, ...] = get_args(ReviewDecision)
RESTORE = "restore it from version control, or remove it and review again"


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of the review: `done` of `total` rows have as many verdicts as the rules require; `right` of them
    count as right; `recorded` of the `verdicts` were given elsewhere; `missing`: ids of the rows that need more
    verdicts, in the sample's order."""

    done: int
    total: int
    right: int
    verdicts: int
    recorded: int
    missing: tuple[str, ...]

    @property
    def complete(self) -> bool:
        return self.total > 0 and not self.missing


def verdicts_folder(store: TaskStore) -> UPath:
    return store.review_folder / "verdicts"


def recorded_file(store: TaskStore, task: Task) -> UPath | None:
    """The declared file of recorded verdicts, if any. DataError when it does not exist."""
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
    """Save a verdict; it replaces that of the same reviewer on the same content. DataError when it is incomplete."""
    _check(asdict(review), f"the verdict of {review.reviewer!r} on row {review.id}")
    write_atomic(verdicts_folder(store) / _name(review), dumps(asdict(review)))


def withdraw(store: TaskStore, review: Review) -> None:
    """Delete a verdict, if there is one."""
    (verdicts_folder(store) / _name(review)).unlink(missing_ok=True)


def load(store: TaskStore, task: Task, sample: Artifact) -> list[Review]:
    """The verdicts on the rows of `sample` as they are now: see `load_for`."""
    return load_for(store, task, list(sample.examples("sample.jsonl")))


def load_for(store: TaskStore, task: Task, rows: Sequence[Example]) -> list[Review]:
    """The verdicts on these rows as they are now, in the order of the rows, then by reviewer.

    Verdicts on other rows or on other content are left out. A reviewer's verdict from the desk replaces a recorded one.
    DataError names a damaged file or line.
    """
    hashes = {row.id: row.content_hash for row in rows}
    latest: dict[str, dict[str, Review]] = defaultdict(dict)
    for review in (*_recorded(recorded_file(store, task)), *_from_desk(verdicts_folder(store), hashes)):
        if hashes.get(review.id) == review.content_hash:
            latest[review.id][review.reviewer] = review
    return [latest[row.id][name] for row in rows for name in sorted(latest[row.id])]


def load_all(store: TaskStore, task: Task) -> dict[RowVersion, list[Review]]:
    """All verdicts, by row id and content hash, also on rows that are no longer in the data. A declared file of
    recorded verdicts may be missing: before the first draw it is unknown which rows it has to cover."""
    declared = store.root / task.review.recorded if task.review.recorded else None
    with reading(declared):
        recorded = declared if declared is not None and declared.exists() else None
    latest: dict[RowVersion, dict[str, Review]] = defaultdict(dict)
    for review in (*_recorded(recorded), *_from_desk(verdicts_folder(store), None)):
        latest[review.id, review.content_hash][review.reviewer] = review
    return {version: list(by_reviewer.values()) for version, by_reviewer in latest.items()}


def progress(rows: Sequence[Example], reviews: Iterable[Review], rules: ReviewRules) -> Progress:
    """The progress of the review of the sample's `rows`."""
    given = by_row(rows, reviews)
    missing = tuple(row.id for row in rows if len(given[row.id]) < rules.reviewers)
    incomplete = set(missing)
    right = sum(is_right(row, given[row.id]) for row in rows if row.id not in incomplete)
    verdicts = [review for group in given.values() for review in group]
    recorded = sum(review.recorded for review in verdicts)
    return Progress(len(rows) - len(missing), len(rows), right, len(verdicts), recorded, missing)


def todo(rows: Sequence[Example], reviews: Iterable[Review], rules: ReviewRules, reviewer: str) -> list[Example]:
    """The rows that need more verdicts and have none from `reviewer`, in the sample's order."""
    given = by_row(rows, reviews)
    return [
        row
        for row in rows
        if len(given[row.id]) < rules.reviewers and reviewer not in {review.reviewer for review in given[row.id]}
    ]


def by_row(rows: Sequence[Example], reviews: Iterable[Review]) -> dict[str, list[Review]]:
    """The verdicts on the current content of each row, by row id; an empty list where there are none."""
    hashes = {row.id: row.content_hash for row in rows}
    grouped: dict[str, list[Review]] = {row.id: [] for row in rows}
    for review in reviews:
        if hashes.get(review.id) == review.content_hash:
            grouped[review.id].append(review)
    return grouped


def approves(row: Example, review: Review) -> bool:
    """Whether the reviewer approves the row as it is. An edit that changes nothing is an approval."""
    return review.decision == "approve" or (review.decision == "edit" and review.completion == row.completion)


def is_right(row: Example, reviews: Sequence[Review]) -> bool:
    """Whether more than half of the row's reviewers approve it as it is; a tie is not enough."""
    return 2 * sum(approves(row, review) for review in reviews) > len(reviews)


def _name(review: Review) -> str:
    return f"{review.id}-{review.content_hash}-{content_id(review.reviewer)}.json"


def _from_desk(folder: UPath, hashes: Mapping[str, str] | None) -> list[Review]:
    """The desk's verdicts on rows with these content hashes, by row id (None: all); files of others are not opened. A
    verdict that is withdrawn after the folder was listed does not count."""
    with reading(folder):
        paths = list(folder.iterdir()) if folder.exists() else []
    wanted = None if hashes is None else {f"{id_}-{content_hash}" for id_, content_hash in hashes.items()}
    files = sorted(path.name for path in paths if path.name.endswith(".json") and path.name[0] != ".")
    names = [name for name in files if wanted is None or name.rpartition("-")[0] in wanted]
    texts = ((folder / name, _text_or_none(folder / name)) for name in names)
    return [_parse(text, str(path)) for path, text in texts if text is not None]


def _text_or_none(path: UPath) -> str | None:
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
        raise DataError(f"{where} is not a verdict: {error}", "fix it, or remove it and review again") from error
    _check(row, where)
    return Review(**row)


def _check(row: Any, where: str) -> None:
    """DataError unless `row` is a complete verdict: what an expert meant is not guessed."""
    hint = "write a verdict as {id, content_hash, reviewer, decision, at}, with `completion` for an edit"
    fields = row if isinstance(row, dict) else {}
    for name in ("id", "content_hash", "reviewer", "decision", "at"):
        if not isinstance(fields.get(name), str) or not fields[name].strip():
            raise DataError(f"{where} has no `{name}`", hint)
    unknown = sorted(set(fields) - set(Review.__slots__))
    if unknown:
        raise DataError(f"{where} has unknown fields: {', '.join(unknown)}", hint)
    if fields["decision"] not in DECISIONS:
        raise DataError(
            f"{where} has the unknown `decision: {fields['decision']}`", f"use one of {', '.join(DECISIONS)}"
        )
    completion = fields.get("completion")
    if fields["decision"] == "edit" and not (isinstance(completion, str) and completion.strip()):
        raise DataError(f"{where} is an edit without the edited `completion`", hint)
