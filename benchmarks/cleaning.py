"""How fast are rows cleaned, and what is caught, beside the script that many teams write instead?

    python benchmarks/cleaning.py [--json] [--rows 20000 100000]

Data: help-desk messages that this script makes (seeded), with counted dirt: HTML, broken encodings, personal data,
exact and near duplicates, contradictions, answers that break off. Peer: pandas `drop_duplicates` and a regular
expression for each kind of dirt. Both run in this process, one after the other, on one core; tokens are counted by
words for both. Caught: the share of planted rows that were fixed or dropped. Lost: clean rows that were dropped.
"""

from __future__ import annotations

import argparse
import html
import json
import os
import platform
import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

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
    """The rows, and for each kind of dirt the ids that carry it."""

    rows: list[Example]
    dirty: dict[str, set[str]]


@dataclass(frozen=True)
class Result:
    """Question of each row that was kept, by id."""

    kept: dict[str, str]
    seconds: float
    cpu: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object of figures on the last line")
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 100_000])
    options = parser.parse_args()
    figures: dict[str, Json] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "load": round(os.getloadavg()[0], 1),
    }
    print(f"{figures['machine']}, load {figures['load']}")
    for count in options.rows:
        figures[str(count)] = compare(plant(count))
    if options.json:
        print(json.dumps(figures))


def compare(planted: Planted) -> dict[str, dict[str, float]]:
    """Run both on the same rows and print a table; gives the figures."""
    ours, peer = timed(pipeline, planted.rows), timed(script, planted.rows)
    figures = {"finetune": judged(planted, ours), "script": judged(planted, peer)}
    print(f"\n{len(planted.rows)} rows{'':>14}finetune    script")
    for name, value in figures["finetune"].items():
        print(f"{name:>22} {value:>13,} {figures['script'][name]:>9,}")
    return figures


def timed(job: Callable[[Sequence[Example]], dict[str, str]], rows: Sequence[Example]) -> Result:
    job(rows[:500])  # what is imported on the way is not measured
    start, cpu = time.perf_counter(), time.process_time()
    kept = job(rows)
    return Result(kept, time.perf_counter() - start, time.process_time() - cpu)


def judged(planted: Planted, result: Result) -> dict[str, float]:
    before = {row.id: row.prompt for row in planted.rows}
    clean_rows = set(before) - set().union(*planted.dirty.values())
    figures: dict[str, float] = {
        "rows/s": round(len(before) / result.seconds),
        "rows/s of processor": round(len(before) / result.cpu),
        "kept": len(result.kept),
        "clean rows lost": len(clean_rows - set(result.kept)),
    }
    for kind, ids in planted.dirty.items():
        caught = sum(caught_row(kind, i, result.kept) for i in ids)
        figures[f"caught: {kind}"] = round(caught / len(ids), 3)
    return figures


def caught_row(kind: str, row: str, kept: dict[str, str]) -> bool:
    """Dropped, or (for dirt in the text) no longer to be seen."""
    if row not in kept or kind in ("exact", "near", "contradiction", "truncated"):
        return row not in kept
    left = {"html": ("<", "&nbsp;"), "encoding": ("Ã", "â€"), "personal": PERSONAL}[kind]
    return not any(mark in kept[row] for mark in left)


# the two ways -----------------------------------------------------------------------------------------------------


def pipeline(rows: Sequence[Example]) -> dict[str, str]:
    result = clean(rows, Clean(max_tokens=512), ANSWER, "", lambda texts: [len(text.split()) for text in texts])
    return {row.id: row.prompt for row in result.kept}


def script(rows: Sequence[Example]) -> dict[str, str]:
    """What a careful person writes in an hour."""
    import pandas as pd

    frame = pd.DataFrame(
        {"id": [r.id for r in rows], "text": [r.prompt for r in rows], "answer": [r.completion for r in rows]}
    )
    tag = re.compile(r"<[^>]+>")
    marks = ((re.compile(r"\S+@\S+\.\w+"), "<EMAIL>"), (re.compile(r"\+?\d[\d -]{8,}\d"), "<NUMBER>"))

    def fixed(text: str) -> str:
        text = html.unescape(tag.sub(" ", text))
        for pattern, sign in marks:
            text = pattern.sub(sign, text)
        return " ".join(text.split())

    def valid(answer: str) -> bool:
        try:
            return json.loads(answer)["intent"] in INTENTS
        except (json.JSONDecodeError, KeyError):
            return False

    frame["text"] = frame["text"].map(fixed)
    frame = frame[frame["answer"].map(valid)]
    frame = frame.loc[~frame.assign(key=frame["text"].str.lower()).duplicated(["key", "answer"])]
    return dict(zip(frame["id"], frame["text"], strict=True))


# the data ---------------------------------------------------------------------------------------------------------


def plant(count: int) -> Planted:
    """`count` rows with the shares of dirt above; each dirty row carries one kind. A repeated row repeats a clean one
    that came before it; none is repeated twice."""
    random_ = random.Random(SEED)
    vocabulary = words(random_)
    kinds = [kind for kind, share in SHARES.items() for _ in range(int(share * count))]
    kinds += ["clean"] * (count - len(kinds))
    random_.shuffle(kinds)
    rows: list[Example] = []
    unrepeated: list[Example] = []
    dirty: dict[str, set[str]] = {kind: set() for kind in SHARES}
    for n, kind in enumerate(kinds):
        row = fresh(f"row{n:07}", vocabulary, random_)
        if kind == "clean" or (kind in REPEATS and not unrepeated):
            unrepeated.append(row)
        elif kind in REPEATS:
            first = unrepeated.pop(random_.randrange(len(unrepeated)))
            row = repeated(kind, row.id, first, random_)
            dirty[kind] |= {row.id, first.id} if kind == "contradiction" else {row.id}
        else:
            row = dirtied(kind, row, random_)
            dirty[kind].add(row.id)
        rows.append(row)
    return Planted(rows, dirty)


def words(random_: random.Random) -> list[str]:
    """3000 invented words; a rank's frequency falls as in real text."""
    parts = ["ba", "ke", "li", "mo", "nu", "par", "sen", "tor", "vel", "win", "ra", "do", "fi"]
    distinct = dict.fromkeys("".join(random_.choices(parts, k=random_.randint(1, 4))) for _ in range(9000))
    return list(distinct)[:3000]


def fresh(id_: str, vocabulary: Sequence[str], random_: random.Random) -> Example:
    ranks = (min(int(random_.paretovariate(0.6)), len(vocabulary)) - 1 for _ in range(random_.randint(15, 45)))
    text = " ".join(vocabulary[rank] for rank in ranks) + f", order HV-{random_.randint(10000, 99999)}."
    answer = json.dumps({"intent": random_.choice(INTENTS)})
    return Example(id_, (Message("user", text), Message("assistant", answer)), "made", f"made:{id_}")


def repeated(kind: str, id_: str, first: Example, random_: random.Random) -> Example:
    text, answer = first.prompt, first.completion
    if kind == "exact":
        text = text.upper() if random_.random() < 0.5 else text.replace(",", " ")
    elif kind == "near":
        parts = text.split()
        parts[random_.randrange(len(parts) - 3)] = "hallo"
        text = " ".join(parts)
    else:
        answer = json.dumps({"intent": random_.choice([i for i in INTENTS if i not in answer])})
    return Example(id_, (Message("user", text), Message("assistant", answer)), "made", f"made:{id_}")


def dirtied(kind: str, row: Example, random_: random.Random) -> Example:
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
