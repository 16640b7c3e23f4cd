"""Measures the speed of cleaning and the share of planted defects that it finds, compared with a short pandas script.

    python benchmarks/cleaning.py [--json] [--rows 20000 100000]

Data: help-desk messages that this script generates (seeded), with a counted number of defects: HTML, broken encodings,
personal data, exact and near duplicates, contradictions, truncated completions. Peer: pandas `drop_duplicates` and a
regular expression for each kind of defect, as many teams write it. Both run in this process, one after the other, on
one core; both count words as tokens. Caught: the share of planted rows that were fixed or dropped. Lost: clean rows
that were dropped.
"""

from __future__ import annotations

import argparse
import html
import json
import os
import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from machine import machine

from finetune_pipeline.clean.pipeline import clean
from finetune_pipeline.config import AnswerFormat, Clean
from finetune_pipeline.records import Example, Json, Message

SEED = 20260105
INTENTS = ("delivery", "refund", "damaged", "cancel", "billing")
ANSWER = AnswerFormat(
    format="json",
    json_schema={
        "required": ["intent"],
        "properties": {"intent": {"enum": list(INTENTS)}},
        "additionalProperties": False,
    },
)
SHARES = {  # of all rows
    "html": 0.05, "encoding": 0.03, "personal": 0.05,
    "exact": 0.05, "near": 0.05, "contradiction": 0.01, "truncated": 0.01,
}  # fmt: skip
REPEATS = ("exact", "near", "contradiction")
PERSONAL = (
    "jo.meyer@example.com",
    "07700 900123",
    "4111 1111 1111 1111",
    "+44 20 7946 0018",
    "DE89 3704 0044 0532 0130 00",
)


@dataclass(frozen=True)
class Planted:
    """The rows, and for each kind of defect the ids of the rows that have it."""

    rows: list[Example]
    defects: dict[str, set[str]]


@dataclass(frozen=True)
class Result:
    """The prompt of each kept row, by id, and the time in seconds: wall clock (`seconds`) and processor (`cpu`)."""

    kept: dict[str, str]
    seconds: float
    cpu: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object of figures on the last line")
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 100_000])
    options = parser.parse_args()
    figures: dict[str, Json] = {
        "machine": machine(),
        "load": round(os.getloadavg()[0], 1),
    }
    print(f"{figures['machine']}, load {figures['load']}")
    for count in options.rows:
        figures[str(count)] = compare(plant(count))
    if options.json:
        print(json.dumps(figures))


def compare(planted: Planted) -> dict[str, dict[str, float]]:
    """Run both on the same rows and print a table; returns the figures."""
    ours, peer = timed(pipeline, planted.rows), timed(script, planted.rows)
    figures = {"finetune": evaluate(planted, ours), "script": evaluate(planted, peer)}
    print(f"\n{len(planted.rows)} rows{'':>14}finetune    script")
    for name, value in figures["finetune"].items():
        print(f"{name:>22} {value:>13,} {figures['script'][name]:>9,}")
    return figures


def timed(job: Callable[[Sequence[Example]], dict[str, str]], rows: Sequence[Example]) -> Result:
    job(rows[:500])  # imports are not measured
    start, cpu = time.perf_counter(), time.process_time()
    kept = job(rows)
    return Result(kept, time.perf_counter() - start, time.process_time() - cpu)


def evaluate(planted: Planted, result: Result) -> dict[str, float]:
    before = {row.id: row.prompt for row in planted.rows}
    clean_rows = set(before) - set().union(*planted.defects.values())
    figures: dict[str, float] = {
        "rows/s": round(len(before) / result.seconds),
        "rows/s of processor": round(len(before) / result.cpu),
        "kept": len(result.kept),
        "clean rows lost": len(clean_rows - set(result.kept)),
    }
    for kind, ids in planted.defects.items():
        caught = sum(is_caught(kind, id_, result.kept) for id_ in ids)
        figures[f"caught: {kind}"] = round(caught / len(ids), 3)
    return figures


def is_caught(kind: str, id_: str, kept: dict[str, str]) -> bool:
    """Whether the row is dropped, or (for a defect in the text) no longer has the defect."""
    if id_ not in kept or kind in ("exact", "near", "contradiction", "truncated"):
        return id_ not in kept
    left = {"html": ("<", "&nbsp;"), "encoding": ("Ã", "â€"), "personal": PERSONAL}[kind]
    return not any(mark in kept[id_] for mark in left)


# the two implementations ------------------------------------------------------------------------------------------


def pipeline(rows: Sequence[Example]) -> dict[str, str]:
    result = clean(rows, Clean(max_tokens=512), ANSWER, "", lambda texts: [len(text.split()) for text in texts])
    return {row.id: row.prompt for row in result.kept}


def script(rows: Sequence[Example]) -> dict[str, str]:
    """The peer: a script of about an hour's work."""
    import pandas as pd

    frame = pd.DataFrame(
        {"id": [r.id for r in rows], "prompt": [r.prompt for r in rows], "completion": [r.completion for r in rows]}
    )
    tag = re.compile(r"<[^>]+>")
    marks = ((re.compile(r"\S+@\S+\.\w+"), "<EMAIL>"), (re.compile(r"\+?\d[\d -]{8,}\d"), "<NUMBER>"))

    def fixed(text: str) -> str:
        text = html.unescape(tag.sub(" ", text))
        for pattern, placeholder in marks:
            text = pattern.sub(placeholder, text)
        return " ".join(text.split())

    def valid(completion: str) -> bool:
        try:
            return json.loads(completion)["intent"] in INTENTS
        except (json.JSONDecodeError, KeyError):
            return False

    frame["prompt"] = frame["prompt"].map(fixed)
    frame = frame[frame["completion"].map(valid)]
    frame = frame.loc[~frame.assign(key=frame["prompt"].str.lower()).duplicated(["key", "completion"])]
    return dict(zip(frame["id"], frame["prompt"], strict=True))


# the data ---------------------------------------------------------------------------------------------------------


def plant(count: int) -> Planted:
    """`count` rows with the shares of defects above, at most one for each row. A repeated row repeats an earlier clean
    one; none is repeated twice."""
    random_ = random.Random(SEED)
    vocabulary = words(random_)
    kinds = [kind for kind, share in SHARES.items() for _ in range(int(share * count))]
    kinds += ["clean"] * (count - len(kinds))
    random_.shuffle(kinds)
    rows: list[Example] = []
    unrepeated: list[Example] = []
    defects: dict[str, set[str]] = {kind: set() for kind in SHARES}
    for n, kind in enumerate(kinds):
        row = clean_row(f"row{n:07}", vocabulary, random_)
        if kind == "clean" or (kind in REPEATS and not unrepeated):
            unrepeated.append(row)
        elif kind in REPEATS:
            first = unrepeated.pop(random_.randrange(len(unrepeated)))
            row = repeated(kind, row.id, first, random_)
            defects[kind] |= {row.id, first.id} if kind == "contradiction" else {row.id}
        else:
            row = damaged(kind, row, random_)
            defects[kind].add(row.id)
        rows.append(row)
    return Planted(rows, defects)


def words(random_: random.Random) -> list[str]:
    """3000 invented words; the frequency of a rank decreases as in real text."""
    parts = ["ba", "ke", "li", "mo", "nu", "par", "sen", "tor", "vel", "win", "ra", "do", "fi"]
    distinct = dict.fromkeys("".join(random_.choices(parts, k=random_.randint(1, 4))) for _ in range(9000))
    return list(distinct)[:3000]


def clean_row(id_: str, vocabulary: Sequence[str], random_: random.Random) -> Example:
    ranks = (min(int(random_.paretovariate(0.6)), len(vocabulary)) - 1 for _ in range(random_.randint(15, 45)))
    text = " ".join(vocabulary[rank] for rank in ranks) + f", order HV-{random_.randint(10000, 99999)}."
    completion = json.dumps({"intent": random_.choice(INTENTS)})
    return Example(id_, (Message("user", text), Message("assistant", completion)), "made", f"made:{id_}")


def repeated(kind: str, id_: str, first: Example, random_: random.Random) -> Example:
    text, completion = first.prompt, first.completion
    if kind == "exact":
        text = text.upper() if random_.random() < 0.5 else text.replace(",", " ")
    elif kind == "near":
        parts = text.split()
        parts[random_.randrange(len(parts) - 3)] = "hallo"
        text = " ".join(parts)
    else:
        completion = json.dumps({"intent": random_.choice([i for i in INTENTS if i not in completion])})
    return Example(id_, (Message("user", text), Message("assistant", completion)), "made", f"made:{id_}")


def damaged(kind: str, row: Example, random_: random.Random) -> Example:
    if kind == "truncated":
        return row.with_completion(row.completion[: random_.randint(3, len(row.completion) - 1)])
    text = {
        "html": f"<p>{row.prompt}</p>&nbsp;<br/>",
        "encoding": f"{row.prompt} cafÃ© dâ€™or",
        "personal": f"{row.prompt} reach me: {random_.choice(PERSONAL)}",
    }[kind]
    return replace(row, messages=(Message("user", text), row.messages[-1]))


if __name__ == "__main__":
    main()
