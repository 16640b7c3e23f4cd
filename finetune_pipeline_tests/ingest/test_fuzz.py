"""Files with random damage: each of their rows is an example or a drop, or the file is refused with a DataError.

Seeded, so that a failure can be reproduced: its message names the format and the seed.
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
from finetune_pipeline.ingest.examples import SourceFile
from finetune_pipeline.ingest.infer import infer
from finetune_pipeline.ingest.readers import open_rows
from finetune_pipeline.ingest.scaffold import declaration
from finetune_pipeline.records import Drop, Example, dumps

ROUNDS = 60
FRAGMENTS = (
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
COLUMNS = ("prompt", "completion", "group", "id", "messages", "chosen", "label")
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252", "shift_jis", "latin-1")


def rows_of(random_: random.Random) -> list[dict[str, Any]]:
    def text() -> str:
        words = random_.choices(["where", "parcel", "Größe", "refund", "ja", *FRAGMENTS], k=random_.randint(0, 6))
        return " ".join(word for word in words if len(word) < 100 or random_.random() < 0.1)

    other_types: tuple[Any, ...] = (None, 3, 2.5, True, [], {}, [text()], {"a": {"a": text()}}, float("nan"))
    keys = [*COLUMNS[:2], *random_.sample(COLUMNS[2:], random_.randint(0, 2))]

    def value(key: str) -> Any:
        if key == "label":
            return random_.random() < 0.5
        return random_.choice(other_types) if random_.random() < 0.1 else text()

    return [{key: value(key) for key in keys if random_.random() < 0.95} for _ in range(random_.randint(0, 80))]


def as_csv(rows: list[dict[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, escapechar="\\")
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
    """The content cut off, with bytes overwritten, inserted or removed, or two parts exchanged; sometimes unchanged."""
    for _ in range(random_.choice([0, 1, 1, 2, 5])):
        position, length = random_.randint(0, len(content)), random_.choice([1, 2, 50])
        kind = random_.randint(0, 4)
        if kind == 0:
            content = content[:position]
        elif kind == 1:
            content = content[:position] + random_.randbytes(length) + content[position + length :]
        elif kind == 2:
            content = content[:position] + random_.choice(BYTES) + content[position:]
        elif kind == 3:
            content = content[:position] + content[position + length :]
        else:
            content = content[position:] + content[:position]
    return content


def check(path: Path) -> str:
    """ "read" or "refused". AssertionError when a row is lost or cannot be written."""
    try:
        opened = open_rows(UPath(path))
        file = SourceFile(path.name, Source(path=path.name), opened, AnswerFormat())
        records = list(file.records())
        count = sum(1 for _ in opened.rows)
    except DataError as error:
        assert path.name in str(error) and error.hint
        return "refused"
    assert len(records) == count
    assert len({record.id for record in records}) == count
    for record in records:
        if isinstance(record, Example):
            dumps(record.to_json()).encode("utf-8")
        else:
            assert isinstance(record, Drop) and record.reason
            dumps([record.origin, record.detail]).encode("utf-8")
    return "read"


@pytest.mark.parametrize("kind", [*TEXTS, "parquet", "bytes"])
def test_damage_to_a_file_results_in_drops_or_a_data_error_only(kind: str, tmp_path: Path) -> None:
    results = set()
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
            results.add(check(path))
            declaration("t", infer(UPath(path)), "raw/x").encode("utf-8")
        except DataError:
            pass
        except Exception as error:
            raise AssertionError(f"{kind}, seed {seed}: {type(error).__name__}: {error}") from error
    assert "read" in results or kind == "bytes"
