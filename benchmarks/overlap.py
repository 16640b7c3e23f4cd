"""Measures time, memory and recall of the leakage check for growing data.

    python benchmarks/overlap.py [--rows 10000 30000 100000] [--threshold 0.6] [--like texts.csv --text text] [--json]

Data: help-desk messages that this script generates (seeded): one of ten openings, then words drawn from 20,000 with the
frequencies of real text; a tenth of the rows are nearly copies of others. With `--like` the words and the lengths of a
real file are used instead: each row is a real row with a quarter of its words replaced by words of other rows. 15 % of
the rows, drawn at random, are the test set, so that there are overlaps to find. Each size runs in a separate process,
whose peak memory (resident set, with the rows) is shown. Peer for the recall: every pair compared, on the first 2,000
rows.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from machine import machine

from finetune_pipeline.records import Example, Message
from finetune_pipeline.split.leakage import overlaps, row_similarity, user_text

SEED = 20260105
TEST = 0.15
COMPARED = 2000  # rows of which every pair is compared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 30_000, 100_000])
    parser.add_argument("--threshold", type=float, default=0.6)
    parser.add_argument("--like", type=Path, help="a CSV file whose words and lengths are used")
    parser.add_argument("--text", default="text", help="its column")
    parser.add_argument("--json", action="store_true", help="one JSON object of figures on the last line")
    options = parser.parse_args()
    if len(options.rows) == 1:
        figures = {str(options.rows[0]): measured(options)}
    else:
        figures = {str(rows): in_subprocess(rows) for rows in options.rows}
    if len(options.rows) > 1 or not options.json:
        show(figures)
    if options.json:
        print(json.dumps({**figures, "machine": machine(), "load": round(os.getloadavg()[0], 1)}))


def in_subprocess(rows: int) -> dict[str, float]:
    """The figures of this script for one size, run in a separate process."""
    arguments = sys.argv[1:]
    if "--rows" in arguments:
        start = arguments.index("--rows")
        end = next((i for i in range(start + 1, len(arguments)) if arguments[i].startswith("--")), len(arguments))
        arguments = arguments[:start] + arguments[end:]
    other = [argument for argument in arguments if argument != "--json"]
    command = [sys.executable, __file__, *other, "--rows", str(rows), "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])[str(rows)]
    return figures


def measured(options: argparse.Namespace) -> dict[str, float]:
    random_ = random.Random(SEED)
    count = options.rows[0]
    texts = like(options.like, options.text, count, random_) if options.like else invented(count, random_)
    rows = [Example(f"r{n}", (Message("user", text),), "made", f"made:{n}") for n, text in enumerate(texts)]
    random_.shuffle(rows)
    test, others = rows[: int(TEST * count)], rows[int(TEST * count) :]
    start, cpu = time.perf_counter(), time.process_time()
    alike = row_similarity(rows, options.threshold)
    prepared = time.perf_counter()
    found = overlaps(test, others, alike)
    end = time.perf_counter()
    return {
        "seconds to measure": round(prepared - start, 1),
        "seconds to check": round(end - prepared, 1),
        "processor seconds": round(time.process_time() - cpu, 1),
        "peak MB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "test rows that overlap": len({overlap.test for overlap in found}),
        "recall": recall(rows[:COMPARED], options.threshold),
    }


def recall(rows: Sequence[Example], threshold: float) -> float:
    """Share of the test rows with a near duplicate, found by comparing every pair, that the check names."""
    test, others = rows[: len(rows) // 5], rows[len(rows) // 5 :]
    sets = {row.id: grams(user_text(row)) for row in rows}
    expected = {
        row.id
        for row in test
        if any(len(sets[row.id] & sets[other.id]) >= threshold * len(sets[row.id] | sets[other.id]) for other in others)
    }
    found = {overlap.test for overlap in overlaps(test, others, row_similarity(rows, threshold))}
    return round(len(expected & found) / len(expected), 4) if expected else 1.0


def grams(text: str) -> set[str]:
    return {text[i : i + 5] for i in range(max(1, len(text) - 4))}


def invented(count: int, random_: random.Random) -> list[str]:
    letters = "eeeeetttaaaooiinnsshhrrddlluccmmffwyypvbgk"
    distinct = dict.fromkeys("".join(random_.choices(letters, k=random_.randint(2, 10))) for _ in range(60_000))
    words = list(distinct)[:20_000]
    weights = list(accumulate(1 / (rank + 2.7) for rank in range(1, len(words) + 1)))  # Zipf and Mandelbrot's law
    openings = [[random_.choice(words[:300]) for _ in range(random_.randint(2, 5))] for _ in range(10)]
    texts: list[str] = []
    for n in range(count):
        if n % 10 == 9:
            texts.append(changed(texts[random_.randrange(n)].split(), words, 0.1, random_))
            continue
        drawn = random_.choices(words, cum_weights=weights, k=random_.randint(8, 30))
        texts.append(" ".join([*random_.choice(openings), *drawn, f"HV-{n * 7919 % 99991}"]))
    return texts


def like(path: Path, column: str, count: int, random_: random.Random) -> list[str]:
    with path.open(encoding="utf-8", newline="") as file:
        real = [row[column].split() for row in csv.DictReader(file)]
    words = [word for row in real for word in row]
    return [
        changed(real[n % len(real)], words, 0.25, random_) if n >= len(real) else " ".join(real[n])
        for n in range(count)
    ]


def changed(text: Sequence[str], words: Sequence[str], share: float, random_: random.Random) -> str:
    """The text with some of its words replaced by others."""
    return " ".join(random_.choice(words) if random_.random() < share else word for word in text)


def show(figures: dict[str, dict[str, float]]) -> None:
    print(machine())
    print(f"{'rows':>10}" + "".join(f"{name:>24}" for name in next(iter(figures.values()))))
    for rows, line in figures.items():
        print(f"{int(rows):>10,}" + "".join(f"{value:>24,}" for value in line.values()))


if __name__ == "__main__":
    main()
