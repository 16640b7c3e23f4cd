"""Files that are damaged at random: each of their rows is an example or a drop, or the file is refused by a DataError.

Seeded, so that a failure is found again: the test's id names the format and the seed.
"""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from finetune_pipeline.config import AnswerFormat, Source
from finetune_pipeline.errors import DataError
from finetune_pipeline.ingest.examples import Reading
from finetune_pipeline.ingest.infer import infer
from finetune_pipeline.ingest.readers import open_rows
from finetune_pipeline.ingest.scaffold import declaration
from finetune_pipeline.records import Drop, Example, PreferencePair, dumps

ROUNDS = 60
NASTY = (
    '"',
    '""',
    "\n",
    "\r\n",
    "\0",
    "\ufeff",
    "{",
    "]",
    "\\",
    "\\ud83d",
    ",",
    ";",
    "\t",
    "9" * 5000,
    "[" * 2000,
    "é",
    "👍",
)
BYTES = (b"\xff", b"\xc3", b"\xed\xa0\x80", b"\0\0", b"\x1f\x8b", b"PAR1", b"\xfe\xff", b'"')
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252", "shift_jis", "latin-1")


def rows_of(random_: random.Random) -> list[dict[str, Any]]:
    def text() -> str:
        words = random_.choices(["where", "parcel", "Größe", "refund", "ja", *NASTY], k=random_.randint(0, 6))
        return " ".join(word for word in words if len(word) < 100 or random_.random() < 0.1)

    odd: tuple[Any, ...] = (None, 3, 2.5, True, [], {}, [text()], {"a": {"a": text()}}, float("nan"))
    keys = ["prompt", "completion", *random_.sample(["group", "id", "messages", "chosen"], random_.randint(0, 2))]
    return [
        {key: random_.choice(odd) if random_.random() < 0.1 else text() for key in keys if random_.random() < 0.95}
        for _ in range(random_.randint(0, 80))
    ]


def as_csv(rows: list[dict[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, ["prompt", "completion", "group", "id", "messages", "chosen"], escapechar="\\")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


TEXTS: dict[str, Callable[[list[dict[str, Any]]], str]] = {
    "csv": as_csv,
    "tsv": lambda rows: as_csv(rows).replace(",", "\t"),
    "jsonl": lambda rows: "\n".join(map(json.dumps, rows)),
    "json": lambda rows: json.dumps(rows, indent=1),
    "txt": lambda rows: json.dumps({"data": rows}),
}


def parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    plain = [{key: None if value is None else str(value) for key, value in row.items()} for row in rows]
    out = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(plain or [{"prompt": "a", "completion": "b"}]), out, compression="none")
    return bytes(out.getvalue().to_pybytes())


def damaged(random_: random.Random, content: bytes) -> bytes:
    """Cut off, bytes overwritten, put in, taken out, or two parts exchanged; sometimes left whole."""
    for _ in range(random_.choice([0, 1, 1, 2, 5])):
        place, length = random_.randint(0, len(content)), random_.choice([1, 2, 50])
        kind = random_.randint(0, 4)
        if kind == 0:
            content = content[:place]
        elif kind == 1:
            content = content[:place] + random_.randbytes(length) + content[place + length :]
        elif kind == 2:
            content = content[:place] + random_.choice(BYTES) + content[place:]
        elif kind == 3:
            content = content[:place] + content[place + length :]
        else:
            content = content[place:] + content[:place]
    return content


def check(path: Path) -> str:
    """What the file turned out to be. AssertionError when a row is lost or cannot be written."""
    try:
        opened = open_rows(UPath(path))
        reading = Reading(path.name, Source(path=path.name), opened, AnswerFormat())
        records = list(reading.records())
        count = sum(1 for _ in opened.rows)
    except DataError as error:
        assert path.name in str(error) and error.hint
        return "refused"
    assert len(records) == count
    assert len({record.id for record in records}) == count
    for record in records:
        if isinstance(record, PreferencePair):
            dumps([record.chosen, record.rejected]).encode("utf-8")
        elif isinstance(record, Example):
            dumps(record.to_json()).encode("utf-8")
        else:
            assert isinstance(record, Drop) and record.reason
            dumps([record.origin, record.detail]).encode("utf-8")
    return "read"


@pytest.mark.parametrize("kind", [*TEXTS, "parquet", "bytes"])
def test_no_damage_to_a_file_is_anything_but_drops_or_a_data_error(kind: str, tmp_path: Path) -> None:
    ends = set()
    for seed in range(ROUNDS):
        random_ = random.Random(f"{kind} {seed}")
        rows = rows_of(random_)
        if kind == "parquet":
            content = parquet(rows)
        elif kind == "bytes":
            content = random_.randbytes(random_.randint(0, 3000))
        else:
            content = TEXTS[kind](rows).encode(random_.choice(ENCODINGS), "replace")
        suffix = random_.choice([*TEXTS, "parquet"]) if kind == "bytes" else kind
        path = tmp_path / f"{seed}.{suffix}"
        path.write_bytes(damaged(random_, content))
        try:
            ends.add(check(path))
            declaration("t", infer(UPath(path)), "raw/x").encode("utf-8")
        except DataError:
            pass
        except Exception as error:
            raise AssertionError(f"{kind}, seed {seed}: {type(error).__name__}: {error}") from error
    assert "read" in ends or kind == "bytes"
