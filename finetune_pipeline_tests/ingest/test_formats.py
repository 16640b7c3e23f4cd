"""The table of source formats: it agrees with the declaration, and a format of one function and one line works."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from upath import UPath

from finetune_pipeline.config import Source
from finetune_pipeline.errors import DataError
from finetune_pipeline.ingest.encoding import encoding_of, open_text
from finetune_pipeline.ingest.readers import FORMATS, Format, open_rows, recognize
from finetune_pipeline.ingest.rows import OpenedFile, ReadOptions, Row

GZIP = b"\x1f\x8b\x08\x00"


def open_lines(path: UPath, options: ReadOptions) -> OpenedFile:
    encoding = encoding_of(path, options.encoding)
    with open_text(path, encoding) as file:
        rows = [Row(n, dict([line.strip().split("=", 1)])) for n, line in enumerate(file, 1)]
    return OpenedFile("lines", encoding, rows)


def test_the_declaration_accepts_exactly_the_formats_of_the_table() -> None:
    declared = get_args(Source.model_fields["format"].annotation)
    assert sorted(declared) == sorted(["auto", *(known.name for known in FORMATS)])


def test_no_two_formats_have_the_same_ending() -> None:
    endings = [ending for known in FORMATS for ending in known.endings]
    assert len(endings) == len(set(endings))
    assert all(ending == ending.lower() and ending.startswith(".") for ending in endings)


def test_a_new_format_is_read_by_its_ending_and_by_its_name(tmp_path: Path) -> None:
    formats = (*FORMATS, Format("lines", open_lines, (".lines",)))
    for name, declared in (("a.lines", "auto"), ("a.txt", "lines")):
        (tmp_path / name).write_text("q=where is it?\n", "utf-8")
        opened = open_rows(UPath(tmp_path / name), declared, formats=formats)
        assert (opened.format, list(opened.rows)) == ("lines", [Row(1, {"q": "where is it?"})])


def test_a_packed_file_is_refused_unless_its_format_is_packed(tmp_path: Path) -> None:
    (tmp_path / "a.gzl").write_bytes(GZIP)
    plain = Format("gzl", open_lines, (".gzl",))
    packed = Format("gzl", open_lines, (".gzl",), packed=True)
    assert recognize(UPath(tmp_path / "a.gzl"), (packed,)) == packed
    with pytest.raises(DataError, match="is compressed"):
        recognize(UPath(tmp_path / "a.gzl"), (plain,))


@pytest.mark.parametrize(
    ("name", "content", "format_"),
    [
        ("a.csv", "PAR1", "csv"),
        ("a.json", "PAR1", "parquet"),
        ("a.ndjson", '{"q": 1}', "jsonl"),
        ("a.txt", '{"q": 1}\n{"q": 2}', "jsonl"),
        ("a.txt", '{"q": 1}', "json"),
        ("a.json", "3\n4", "json"),
        ("a.jsonl", '[{"q": 1}]', "json"),
    ],
)
def test_a_format_is_recognized_by_name_then_by_content(tmp_path: Path, name: str, content: str, format_: str) -> None:
    (tmp_path / name).write_text(content, "utf-8")
    assert recognize(UPath(tmp_path / name)).name == format_
