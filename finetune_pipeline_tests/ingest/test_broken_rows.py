"""One malformed row drops only itself: whatever is wrong with it, it is a drop with a reason, and the rest is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from finetune_pipeline.config import AnswerFormat, Source
from finetune_pipeline.errors import DataError
from finetune_pipeline.ingest import encoding, rows
from finetune_pipeline.ingest.examples import SourceFile
from finetune_pipeline.ingest.infer import infer
from finetune_pipeline.ingest.readers import open_rows
from finetune_pipeline.ingest.sources import opened_files, problems
from finetune_pipeline.records import Drop, dumps
from finetune_pipeline_tests.artifacts import task, task_store

GOOD = '{"prompt": "hi", "completion": "x"}'
DEEP = "[" * 100_000 + "]" * 100_000
LONG = "9" * 5_000


def read(path: Path, content: str | bytes, **declared: Any) -> list[str]:
    """For each row its completion, or the reason of its drop. Checks that every record can be written to a file."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    source = Source(path=str(path), **declared)
    records = list(SourceFile(path.name, source, open_rows(UPath(path)), AnswerFormat()).records())
    for record in records:
        dumps(record.to_json() if not isinstance(record, Drop) else str(record)).encode()
    assert len({record.id for record in records}) == len(records)
    return [record.reason if isinstance(record, Drop) else record.completion for record in records]


@pytest.mark.parametrize(
    ("unreadable", "reason"),
    [
        (f'{{"prompt": {LONG}, "completion": "x"}}', "invalid-json"),
        (f'{{"prompt": {DEEP}, "completion": "x"}}', "invalid-json"),
        ('{"prompt": ' + "[" * 900 + "]" * 900 + ', "completion": "x"}', None),  # near the limit: read or dropped
        ('{"prompt": "hi", "prompt": "ho", "completion": "x"}', "duplicate-key"),
        ('{"prompt": "hi", "completion": {"a": 1, "a": 2}}', "duplicate-key"),
        ('{"prompt": "hi", "messages": null, "completion": ""}', ""),
    ],
)
def test_an_unreadable_line_or_element_is_dropped_and_the_others_are_read(
    tmp_path: Path, unreadable: str, reason: str | None
) -> None:
    lines = read(tmp_path / "a.jsonl", f"{GOOD}\n{unreadable}\n{GOOD}\n", input="prompt", output="completion")
    array = read(tmp_path / "a.json", f"[{GOOD},\n{unreadable},\n{GOOD}]", input="prompt", output="completion")
    wrapped = read(
        tmp_path / "b.json", f'{{"v": 1, "data": [{GOOD},{unreadable},{GOOD}]}}', input="prompt", output="completion"
    )
    for found in (lines, array, wrapped):
        assert (found[0], found[2], len(found)) == ("x", "x", 3)
        assert reason is None or found[1] == reason


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", '{"a": [1, {"b": NaN}]}'])
def test_a_number_that_json_does_not_have_drops_the_row_if_its_column_is_used(tmp_path: Path, number: str) -> None:
    in_prompt, in_completion = (
        f'{{"prompt": {number}, "completion": "x"}}',
        f'{{"prompt": "hi", "completion": {number}}}',
    )
    unused = f'{{"prompt": "hi", "completion": "y", "score": {number}}}'
    lines = [GOOD, in_prompt, in_completion, unused]
    for found in (
        read(tmp_path / "a.jsonl", "\n".join(lines)),
        read(tmp_path / "a.json", f"[{','.join(lines)}]"),
        read(tmp_path / "b.json", f'{{"data": [{",".join(lines)}]}}'),
    ):
        assert found == ["x", "invalid-json", "invalid-json", "y"]
    pair = f'{{"prompt": "hi", "chosen": "x", "rejected": {number}}}'
    assert read(tmp_path / "c.jsonl", pair) == ["invalid-json"]


def test_nan_in_parquet_drops_the_row_within_completions_and_is_no_group(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path, nan, inf = tmp_path / "a.parquet", float("nan"), float("inf")
    completions = [{"a": [1.0, 2.0]}, {"a": [1.0, nan]}, {"a": [inf]}, {"a": None}, {"a": [3.0]}]
    columns = {"prompt": list("abcde"), "completion": completions, "who": [nan, 1.0, 2.0, nan, inf], "score": [nan] * 5}
    pq.write_table(pa.table(columns), path)
    found = read(path, path.read_bytes(), group="who")
    assert found == ['{"a": [1.0, 2.0]}', "invalid-json", "invalid-json", '{"a": null}', "invalid-json"]


def test_nan_in_a_csv_cell_is_no_number(tmp_path: Path) -> None:
    declared = AnswerFormat(format="json", json_schema={"properties": {"n": {"type": "number"}}})
    (tmp_path / "a.csv").write_text("text,n\nhi,NaN\nho,1e999\nhu,2.5\n", "utf-8")
    source = Source(path="a.csv", outputs=("n",))
    found = list(SourceFile("a.csv", source, open_rows(UPath(tmp_path / "a.csv")), declared).records())
    assert [record.reason for record in found if isinstance(record, Drop)] == ["invalid-json", "invalid-json"]
    assert found[2].completion == '{"n": 2.5}'  # type: ignore[union-attr]


def test_a_file_of_two_arrays_is_refused_and_not_read_in_part(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 2, column 1: Extra data"):
        read(tmp_path / "a.json", f"[{GOOD}]\n[{GOOD}]")
    with pytest.raises(DataError, match="Extra data"):
        read(tmp_path / "b.json", f'{{"data": [{GOOD}]}}{{"data": [{GOOD}]}}')


def test_unpaired_surrogates_are_replaced_in_every_field(tmp_path: Path) -> None:
    unpaired = '{"prompt": "hi \\ud83d", "completion": "x", "who": "c\\udc00", "\\ud800": 1}'
    assert read(tmp_path / "a.jsonl", f"{unpaired}\n{GOOD}\n", group="who") == ["x", "x"]
    assert read(tmp_path / "b.jsonl", '{"\\ud800": 1}\n' + GOOD, input="none") == ["missing-column", "missing-column"]


def test_a_csv_field_beyond_the_limit_is_dropped_as_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_CHARS", 10_000)
    text = "prompt,completion\nhi,x\n" + "y" * 20_000 + ",x\nho,z\n"
    assert read(tmp_path / "a.csv", text) == ["x", "too-long", "z"]
    quoted = 'prompt,completion\nhi,x\n"' + "y\n" * 9_000 + '",x\nho,z\n'
    assert "z" in read(tmp_path / "b.csv", quoted)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_line_beyond_the_limit_is_dropped_and_never_whole_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(rows, "MAX_CHARS", 10_000)
    huge = '{"prompt": "' + "é" * 300_000 + '", "completion": "x"}'
    assert read(tmp_path / "a.jsonl", end.join([GOOD, huge, GOOD])) == ["x", "too-long", "x"]


def test_two_long_lines_have_two_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_CHARS", 100)
    assert read(tmp_path / "a.jsonl", "\n".join(["a" * 500, "a" * 500, "a" * 501, GOOD])) == ["too-long"] * 3 + ["x"]


def test_detecting_the_encoding_copies_each_byte_a_few_times_for_any_line_length(tmp_path: Path) -> None:
    """Bytes are counted, not seconds: all chunks together are no more than the file."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"prompt": "' + "é".encode() * (4 << 20) + b'"}')
    sizes = [len(chunk) for chunk in encoding.chunks(UPath(path))]
    assert sum(sizes) == path.stat().st_size
    assert max(sizes) <= 3 << 20
    assert encoding.detect(UPath(path)) == "utf-8"


def test_an_unclosed_quote_with_another_one_later_keeps_the_rows_between(tmp_path: Path) -> None:
    text = "prompt,completion\none,x\n" + '"two,y\n' + "".join(f"row {n},z{n}\n" for n in range(20)) + 'last,"end"\n'
    found = read(tmp_path / "a.csv", text)
    assert found[:2] == ["x", "malformed-row"]
    assert [f"z{n}" for n in range(20)] == found[2:22]
    swallowed = "prompt,completion\none,x\n" + '"two,y\n' + "".join(f"row {n},z{n}\n" for n in range(20)) + 'last,q"\n'
    found = read(tmp_path / "b.csv", swallowed)
    assert found[1] == "malformed-row"
    assert [f"z{n}" for n in range(20)] == found[2:22]


def test_a_quoted_field_of_many_lines_with_commas_stays_one_field(tmp_path: Path) -> None:
    letter = "Dear Sir, dear Madam,\nmy lamp, the red one, is broken.\n\nYours,\nA. Smith, Exeter"
    assert read(tmp_path / "a.csv", f'prompt,completion\n"{letter}",x\n"{letter}",y\n') == ["x", "y"]


def test_a_key_that_first_occurs_in_a_later_row_is_found(tmp_path: Path) -> None:
    head = "".join(f'{{"prompt": "q{n}"}}\n' for n in range(120))
    found = read(tmp_path / "a.jsonl", head + GOOD)
    assert found == ["missing-column"] * 120 + ["x"]
    broken = "no json\n" * 60 + GOOD
    assert read(tmp_path / "b.jsonl", broken) == ["invalid-json"] * 60 + ["x"]
    grouped = "".join(f'{{"prompt": "q{n}", "completion": "a{n}"}}\n' for n in range(60))
    last = '{"prompt": "q", "completion": "x", "who": "c1"}'
    assert read(tmp_path / "c.jsonl", grouped + last, group="who")[-2:] == ["a59", "x"]


def test_problems_and_infer_find_a_key_of_a_later_row_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = task_store(tmp_path, monkeypatch)
    path = Path(str(store.root)) / "raw" / "a.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("no json\n" * 60 + f"{GOOD}\n" * 10, "utf-8")
    assert problems(task(sources=[{"path": "raw/a.jsonl"}]), store) == []
    assert infer(UPath(path)).dropped == {"invalid-json": 60}


def test_infer_reads_completions_that_cannot_be_parsed(tmp_path: Path) -> None:
    answers = [f'{{"a": {LONG}}}', '{"a": ' + DEEP + "}", '{"a": "\\ud83d"}', '{"a": "b"}']
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(dumps({"prompt": "q", "completion": answer}) for answer in answers * 10), "utf-8")
    assert infer(UPath(path)).rows == 40


def test_parquet_with_a_column_twice_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_arrays([pa.array(["hi"])] * 3, names=["prompt", "completion", "prompt"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="column 'prompt' more than once"):
        open_rows(UPath(tmp_path / "a.parquet"))


def table_with_an_unreadable_value(kind: str) -> Any:
    """A table of three rows; the second has a value that Python cannot hold."""
    import pyarrow as pa

    if kind == "date":
        days = pa.array([1, 2**31 - 1, 3], pa.int32()).cast(pa.date32())
        return pa.table({"prompt": ["a", "b", "c"], "completion": ["x", "y", "z"], "day": days})
    text = pa.StringArray.from_buffers(
        3, pa.py_buffer(b"\0\0\0\0\x02\0\0\0\x04\0\0\0\x06\0\0\0"), pa.py_buffer(b"hi\xff\xfeho")
    )
    return pa.table({"prompt": text, "completion": ["x", "y", "z"]})


@pytest.mark.parametrize("kind", ["date", "text"])
def test_a_parquet_value_that_python_cannot_hold_drops_its_row(tmp_path: Path, kind: str) -> None:
    import pyarrow.parquet as pq

    pq.write_table(table_with_an_unreadable_value(kind), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", (tmp_path / "a.parquet").read_bytes()) == ["x", "malformed-row", "z"]


@pytest.mark.parametrize("kind", ["date", "text"])
def test_a_data_set_value_that_python_cannot_hold_drops_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    import datasets

    dataset = datasets.Dataset(table_with_an_unreadable_value(kind))
    dataset.save_to_disk(str(tmp_path / "saved"))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: dataset)
    sources = [Source(path="saved"), Source(hub="owner/name", revision="0" * 40)]
    for source in sources:
        ((name, opened),) = opened_files(source, UPath(tmp_path))
        found = list(SourceFile(name, source, opened, AnswerFormat()).records())
        assert [row.reason if isinstance(row, Drop) else row.completion for row in found] == ["x", "malformed-row", "z"]


def test_a_file_that_becomes_unreadable_between_rows_is_an_error_with_its_name(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": [str(n) for n in range(9000)], "completion": ["x"] * 9000}), path)
    whole = bytearray(path.read_bytes())
    whole[200:2000] = b"\xff" * 1800
    with pytest.raises(DataError, match=r"a\.parquet"):
        read(path, bytes(whole))


def test_an_unexpected_error_is_reported_by_its_type_and_not_by_its_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune_pipeline.ingest import examples

    def boom(*_: Any) -> None:
        raise KeyError("Mr Miller's secret")

    monkeypatch.setattr(examples, "conversation", boom)
    assert read(tmp_path / "a.jsonl", GOOD) == ["malformed-row"]


def test_rows_of_a_wrapped_array_have_their_lines(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"version": "[1]",\n "data": [\n{"q": 1},\n\n{"q": "]"}\n]}', "utf-8")
    assert [row.line for row in open_rows(UPath(tmp_path / "a.json")).rows] == [3, 5]


def test_csv_cells_that_cannot_be_parsed_as_numbers_stay_text(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}, "l": {"type": "array"}}}
    declared = AnswerFormat(format="json", json_schema=schema)
    (tmp_path / "a.csv").write_text(f"text,n,l\nhi,{LONG},{DEEP}\n", "utf-8")
    source = Source(path="a.csv", outputs=("n", "l"))
    record = next(iter(SourceFile("a.csv", source, open_rows(UPath(tmp_path / "a.csv")), declared).records()))
    assert not isinstance(record, Drop)
    assert json.loads(record.completion) == {"n": LONG, "l": DEEP}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "a.csv is empty"),
        ("a.jsonl", b'{"q": 1, "q": 2}\n', r"a.jsonl has no row that can be read \(duplicate-key: 1\)"),
        ("a.json", b"[1, 2]", r"a.json has no row that can be read \(invalid-json: 2\)"),
        ("a.csv", b'"open,x\nhi,y\n', "the header of .*a.csv cannot be read: broken quotes"),
        ("a.xlsx", b"PK\x03\x04....", "a.xlsx is a zip archive or an Excel workbook"),
        ("a.csv.gz", b"\x1f\x8b....", "a.csv.gz is compressed"),
        ("a.csv", b"\x1f\x8b\x01\x02\x03\x04\x05", "a.csv is compressed"),
    ],
)
def test_the_error_of_infer_names_what_is_wrong_with_a_file_without_rows(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as refused:
        infer(UPath(tmp_path / name))
    assert refused.value.hint


def test_an_array_in_a_file_named_jsonl_is_read_as_an_array(tmp_path: Path) -> None:
    assert read(tmp_path / "a.jsonl", f"[\n{GOOD},\n{GOOD}\n]") == ["x", "x"]
    assert read(tmp_path / "b.jsonl", f"[{GOOD},{GOOD}]") == ["x", "x"]
    assert read(tmp_path / "c.jsonl", f'["a", "b"]\n{GOOD}\n') == ["invalid-json", "x"]


@pytest.mark.parametrize("path", ["s3://no-such-bucket-here/x.csv", "foo://x/x.csv", "http://127.0.0.1:9/x.csv"])
def test_an_unreachable_address_is_a_problem_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    store = task_store(tmp_path, monkeypatch)
    (problem,) = problems(task(sources=[{"path": path}]), store)
    assert path in problem
