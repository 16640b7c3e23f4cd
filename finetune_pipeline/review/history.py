"""Where the review's rounds are remembered: beside the verdicts, in the task's own `review/` folder, to be committed.

    review/rounds/1.json            the draw: {"number": 1, "salt": "7", "cut": "1f3a…", "drawn": [[id, content], …], …}
    review/rounds/1.decided.json    what the gate said: [{"passed": false, "right": 60, "rows": 72, …}]

A round is written down with its first verdict (or its refusal, where all verdicts are recorded ones): until then it may
be drawn anew. What it is not: what follows from the rounds (rounds.py).
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

from upath import UPath

from finetune_pipeline.config import Task
from finetune_pipeline.errors import StorageError, reading
from finetune_pipeline.records import Artifact, content_id, dumps
from finetune_pipeline.review.rounds import Decision, History, Round, rules_hash
from finetune_pipeline.store import TaskStore, write_atomic

ROUND = "round.json"  # in the artifact review_sample
_DECIDED = ".decided.json"
RESTORE = "restore it from version control; without it rows that were reviewed could be counted again"


def rounds_folder(store: TaskStore) -> UPath:
    return store.review_folder / "rounds"


def load_history(store: TaskStore) -> History:
    """All rounds that were written down. StorageError names a damaged file."""
    folder = rounds_folder(store)
    with reading(folder):
        paths = sorted(folder.iterdir(), key=lambda path: path.name) if folder.exists() else []
    rounds: list[Round] = []
    decisions: dict[int, tuple[Decision, ...]] = {}
    for path in (path for path in paths if path.name.endswith(".json") and not path.name.startswith(".")):
        with reading(f"{path}, which says what earlier rounds of the review drew,", RESTORE):
            plain = json.loads(path.read_text(encoding="utf-8"))
            if path.name.endswith(_DECIDED):
                decisions[int(path.name.removesuffix(_DECIDED))] = tuple(Decision(**each) for each in plain)
            else:
                rounds.append(Round.from_json(plain))
    return History(tuple(sorted(rounds, key=lambda each: each.number)), decisions)


def round_of(sample: Artifact) -> Round:
    """The round that the artifact review_sample belongs to. StorageError when it does not say."""
    if ROUND not in sample.manifest["files"]:
        raise StorageError(
            f"{sample.folder} does not say which round of the review it belongs to",
            f"delete {sample.folder.parent} and run again: the sample is drawn anew, the verdicts stay",
        )
    with sample.reading(ROUND):
        return Round.from_json(sample.json(ROUND))


def open_round(store: TaskStore, sample: Artifact) -> None:
    """Write the round of this sample down; rows that were drawn since are added to those that were before."""
    drawn = round_of(sample)
    known = {each.number: each for each in load_history(store).rounds}.get(drawn.number)
    if known is None or not drawn.drawn <= known.drawn:
        every = drawn.drawn | (known.drawn if known else frozenset())
        lasting = replace(known or drawn, drawn=every, gone=0, population=None)
        write_atomic(rounds_folder(store) / f"{drawn.number}.json", dumps(lasting.to_json()))


def decide(store: TaskStore, sample: Artifact, decision: Decision) -> None:
    """Remember what the gate said. A round that passed on recorded verdicts alone leaves no trace: nothing of it could
    be lost, and a fresh checkout gives the same."""
    number = round_of(sample).number
    history = load_history(store)
    if decision.passed and number not in {each.number for each in history.rounds}:
        return
    open_round(store, sample)
    before = history.of(number)
    if not before or asdict(before[-1]) | {"at": ""} != asdict(decision) | {"at": ""}:
        lines: list[dict[str, Any]] = [asdict(each) for each in (*before, decision)]
        write_atomic(rounds_folder(store) / f"{number}{_DECIDED}", json.dumps(lines, indent=1))


def ended_fingerprint(task: Task, store: TaskStore) -> str:
    """Hash of the rounds that a change of the data or the rules has ended since the gate refused: a new draw is due.
    A refusal of the very data that is there now ends nothing: it stands."""
    clean = store.current("clean_examples")
    now = (clean.content_hash if clean else "", rules_hash(task.review))
    last = {number: decided[-1] for number, decided in load_history(store).decisions.items() if decided}
    ended = [str(n) for n, one in sorted(last.items()) if not one.passed and (one.about, one.rules) != now]
    return content_id(*ended)
