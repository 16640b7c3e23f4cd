"""Counts the test rows that have a copy or a near copy in training: with a random split, and with this pipeline's.

    python benchmarks/split.py train.csv [test.csv] [--text text] [--label category] [--threshold 0.6] [--json]

Data: any CSV with a column of prompts and one of labels, e.g. BANKING77. With two files the published split is measured
as well, and the rows of both together are split again. Peer: scikit-learn's `train_test_split`, stratified by label, of
the same test share. A leaked row is a test row whose prompt, normalized, is equal to that of a row outside test, or
reaches the threshold of Jaccard similarity of character 5-grams with one (counted exactly).
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import machine

from finetune_pipeline.config import Split
from finetune_pipeline.records import Example, Message, content_id
from finetune_pipeline.split.assignment import assign_without_overlap, rows_by_split
from finetune_pipeline.split.leakage import overlaps, row_similarity

SEEDS = (11, 12, 13)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--text", default="text")
    parser.add_argument("--label", default="category")
    parser.add_argument("--threshold", type=float, default=Split().near_duplicate_threshold)
    parser.add_argument("--json", action="store_true", help="one JSON object of figures on the last line")
    options = parser.parse_args()
    parts = [read(path, options.text, options.label) for path in options.files]
    figures = measure(parts, options.threshold)
    figures["files"] = [path.name for path in options.files]
    show(figures)
    if options.json:
        print(json.dumps(figures))


def read(path: Path, text: str, label: str) -> list[Example]:
    with path.open(encoding="utf-8", newline="") as file:
        return [
            Example(
                content_id(path.name, str(number), row[text]),
                (Message("user", row[text]), Message("assistant", row[label])),
                path.stem,
                f"{path.name}:{number}",
            )
            for number, row in enumerate(csv.DictReader(file), start=2)
        ]


def measure(parts: Sequence[list[Example]], threshold: float) -> dict[str, Any]:
    """Leaked test rows of the published split (two files), and of random and pipeline splits with three seeds each."""
    rows = [row for part in parts for row in part]
    splits = []
    if len(parts) == 2:
        splits.append({"split": "as published", **leaked(parts[1], parts[0], threshold)})
    for seed in SEEDS:
        splits.append({"split": f"random, seed {seed}", **random_split(rows, threshold, seed)})
    for seed in SEEDS:
        splits.append({"split": f"ours, seed {seed}", **our_split(rows, threshold, seed)})
    return {"rows": len(rows), "threshold": threshold, "splits": splits, "machine": machine()}


def random_split(rows: Sequence[Example], threshold: float, seed: int) -> dict[str, Any]:
    from sklearn.model_selection import train_test_split

    start = time.perf_counter()
    labels = [row.completion for row in rows]
    train, test = train_test_split(list(rows), test_size=Split().test, random_state=seed, stratify=labels)
    seconds = time.perf_counter() - start
    return {**leaked(test, train, threshold), "seconds": round(seconds, 2)}


def our_split(rows: Sequence[Example], threshold: float, seed: int) -> dict[str, Any]:
    start = time.perf_counter()
    rules = Split(near_duplicate_threshold=threshold, seed=seed)
    similarity = row_similarity(rows, threshold)
    assignment, _ = assign_without_overlap(rows, {}, rules, [row.completion for row in rows], similarity)
    seconds = time.perf_counter() - start
    parts = rows_by_split(rows, assignment)
    found = leaked(parts["test"], [*parts["train"], *parts["validation"]], threshold)
    return {**found, "dropped": len(assignment.drops), "seconds": round(seconds, 2)}


def leaked(test: Sequence[Example], train: Sequence[Example], threshold: float) -> dict[str, Any]:
    """The number of test rows, and how many of them are copies or near copies of a row outside test."""
    copies: set[str] = set()
    near: set[str] = set()
    for overlap in overlaps(test, train, row_similarity([*test, *train], threshold)):
        (copies if overlap.kind == "same prompt" else near).add(overlap.test)
    either = copies | near
    share = round(len(either) / len(test), 4)
    return {"test": len(test), "copies": len(copies), "near": len(near - copies), "leaked": len(either), "share": share}


def show(figures: dict[str, Any]) -> None:
    print(f"{figures['rows']} rows of {', '.join(figures['files'])}; similarity {figures['threshold']}")
    print(figures["machine"])
    print(f"{'split':<20}{'test rows':>10}{'copies':>8}{'near':>8}{'leaked':>9}{'seconds':>9}")
    for line in figures["splits"]:
        seconds = line.get("seconds", "")
        print(
            f"{line['split']:<20}{line['test']:>10}{line['copies']:>8}{line['near']:>8}{line['share']:>9.1%}{seconds:>9}"
        )


if __name__ == "__main__":
    main()
