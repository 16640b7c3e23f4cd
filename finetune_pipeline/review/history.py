"""Store the review's rounds and the gate's results in the task's `review/` folder, which is committed.

    review/rounds/1.json            the draw: {"number": 1, "analysis": 1, "salt": "7", "cutoff": "1f3a…", "drawn": …}
    review/rounds/1.decided.json    the gate's results: [{"passed": false, "right": 60, "rows": 72, …}]

A round is stored with its first verdict (or when the gate fails, where all verdicts are recorded ones). Until then it
may be drawn again. What rounds mean for the draw: sampling.py.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

from upath import UPath

from finetune_pipeline.config import Task
from finetune_pipeline.errors import StorageError, reading
from finetune_pipeline.records import Artifact, content_id, dumps
from finetune_pipeline.review.rounds import GateResult, History, Round, rules_hash
from finetune_pipeline.store import TaskStore, write_atomic

ROUND = "round.json"  # in the artifact review_sample
_DECIDED = ".decided.json"
RESTORE = "restore it from version control; without it, rows that were reviewed could be counted again"


def rounds_folder(store: TaskStore) -> UPath:
    return store.review_folder / "rounds"


def load_history(store: TaskStore) -> History:
    """All stored rounds. StorageError names a damaged file."""
    folder = rounds_folder(store)
    with reading(folder):
        paths = sorted(folder.iterdir(), key=lambda path: path.name) if folder.exists() else []
    rounds: list[Round] = []
    results: dict[int, tuple[GateResult, ...]] = {}
    for path in (path for path in paths if path.name.endswith(".json") and not path.name.startswith(".")):
        with reading(f"{path}, a round of the review,", RESTORE):
            plain = json.loads(path.read_text(encoding="utf-8"))
            if path.name.endswith(_DECIDED):
                results[int(path.name.removesuffix(_DECIDED))] = tuple(GateResult(**result) for result in plain)
            else:
                rounds.append(Round.from_json(plain))
    return History(tuple(sorted(rounds, key=lambda stored: stored.number)), results)


def round_of(sample: Artifact) -> Round:
    """The round of the artifact review_sample. StorageError when it has no round."""
    if ROUND not in sample.manifest["files"]:
        raise StorageError(
            f"{sample.folder} has no {ROUND}, so its round of the review is unknown",
            f"delete {sample.folder.parent} and run again: the sample is drawn again, the verdicts stay",
        )
    with sample.reading(ROUND):
        return Round.from_json(sample.json(ROUND))


def open_round(store: TaskStore, sample: Artifact) -> None:
    """Store the round of this sample. If it is stored already, rows that were drawn since are added."""
    drawn = round_of(sample)
    known = {stored.number: stored for stored in load_history(store).rounds}.get(drawn.number)
    if known is None or not drawn.drawn <= known.drawn:
        all_drawn = drawn.drawn | (known.drawn if known else frozenset())
        stored = replace(known or drawn, drawn=all_drawn, gone=0, population=None)
        write_atomic(rounds_folder(store) / f"{drawn.number}.json", dumps(stored.to_json()))


def record_gate_result(store: TaskStore, sample: Artifact, result: GateResult) -> None:
    """Store the gate's result, unless it repeats the last one. A round that passed with recorded verdicts alone is
    not stored: it follows from files that are committed anyway."""
    number = round_of(sample).number
    history = load_history(store)
    if result.passed and number not in {stored.number for stored in history.rounds}:
        return
    open_round(store, sample)
    earlier = history.results_in(number)
    if not earlier or replace(earlier[-1], at="") != replace(result, at=""):
        lines: list[dict[str, Any]] = [asdict(stored) for stored in (*earlier, result)]
        write_atomic(rounds_folder(store) / f"{number}{_DECIDED}", json.dumps(lines, indent=1))


def ended_fingerprint(task: Task, store: TaskStore) -> str:
    """Hash of the rounds that ended since the gate failed, because the data or the rules changed: a new draw is due.
    While both are unchanged, a round in which the gate failed has not ended."""
    clean = store.current("clean_examples")
    current = (clean.content_hash if clean else "", rules_hash(task.review))
    last = {number: results[-1] for number, results in load_history(store).gate_results.items() if results}
    ended = [str(n) for n, r in sorted(last.items()) if not r.passed and (r.about, r.rules_hash) != current]
    return content_id(*ended)
