"""Files of every format are read as rows with their lines, and what cannot be read is a row with a problem."""

from __future__ import annotations

import json
import pickle
import random
import sqlite3
import struct
import sys
from pathlib import Path

import pytest
from upath import UPath

from finetune_pipeline.errors import DataError
from finetune_pipeline.ingest.encoding import detect, of_head
from finetune_pipeline.ingest.readers import open_rows
from finetune_pipeline.ingest.rows import ReadOptions, Row


def rows(path: Path, text: str | bytes, declared: str = "auto") -> list[Row]:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(open_rows(UPath(path), declared).rows)


def test_csv_rows_have_the_line_on_which_the_record_begins(tmp_path: Path) -> None:
    found = rows(tmp_path / "a.csv", 'q,a\n"one\ntwo",x\nthree,y\n')
    assert [(r.line, r.value) for r in found] == [(2, {"q": "one\ntwo", "a": "x"}), (4, {"q": "three", "a": "y"})]


def test_a_broken_quote_in_csv_drops_one_line_and_not_the_rest(tmp_path: Path) -> None:
    found = rows(tmp_path / "a.csv", 'q,a\none,x\n"two,y\nthree,z\n"four",w\nfive,v\n')
    assert [(r.line, r.problem, r.value.get("q")) for r in found] == [
        (2, None, "one"),
        (3, "malformed-row", None),
        (4, None, "three"),
        (5, None, "four"),
        (6, None, "five"),
    ]


def test_csv_with_a_quote_that_never_closes_keeps_all_rows_after_it(tmp_path: Path) -> None:
    found = rows(tmp_path / "a.csv", 'q,a\n"open,x\n' + "".join(f"row {n},y\n" for n in range(5000)))
    assert [r.problem for r in found] == ["malformed-row", *[None] * 5000]
    assert found[-1].line == 5002


def test_a_csv_row_with_too_many_fields_is_malformed_and_a_quoted_delimiter_is_not(tmp_path: Path) -> None:
    found = rows(tmp_path / "a.csv", 'q,a\nhi, you,x\n"hi, you",x\nshort\nok,x,,\n')
    assert [r.problem for r in found] == ["malformed-row", None, None, None]
    assert found[2].value == {"q": "short"}


def test_csv_reads_semicolons_tabs_and_a_byte_order_mark(tmp_path: Path) -> None:
    assert rows(tmp_path / "a.csv", "\ufeffq;a\nhi, you;x\n")[0].value == {"q": "hi, you", "a": "x"}
    assert rows(tmp_path / "b.tsv", "q\ta\nhi, you\tx\n")[0].value == {"q": "hi, you", "a": "x"}


def test_csv_with_a_column_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="column 'q' more than once"):
        rows(tmp_path / "a.csv", "q,q\n1,2\n")


def test_blank_lines_count_but_not_at_the_end(tmp_path: Path) -> None:
    assert [r.problem for r in rows(tmp_path / "a.csv", "q,a\n1,x\n\n2,y\n\n\n")] == [None, "empty-row", None]
    assert [r.problem for r in rows(tmp_path / "a.jsonl", '{"q": 1}\n\n{"q": 2}\n\n')] == [None, "empty-row", None]


def test_jsonl_lines_that_are_not_objects_are_rows_with_a_problem(tmp_path: Path) -> None:
    found = rows(tmp_path / "a.jsonl", '{"q": 1}\nnot json\n[1]\n{}\n{"q": \n{"q": 2}')
    assert [(r.line, r.problem) for r in found] == [
        (1, None),
        (2, "invalid-json"),
        (3, "invalid-json"),
        (4, "empty-row"),
        (5, "invalid-json"),
        (6, None),
    ]


def test_json_reads_an_array_an_array_in_an_object_and_json_lines(tmp_path: Path) -> None:
    found = rows(tmp_path / "a.json", '[\n {"q": 1},\n {"q":\n 2}, 3,\n {"q": 4}]')
    assert [(r.line, r.problem) for r in found] == [(2, None), (3, None), (4, "invalid-json"), (5, None)]
    assert [r.value for r in rows(tmp_path / "b.json", '{"data": [{"q": 1}, {"q": 2}]}')] == [{"q": 1}, {"q": 2}]
    assert [r.value for r in rows(tmp_path / "c.json", '{"q": 1}\n{"q": 2}\n')] == [{"q": 1}, {"q": 2}]
    assert len(rows(tmp_path / "d.json", '{"messages": [{"role": "user", "content": "hi"}]}')) == 1


def test_json_that_ends_early_is_refused_with_line_and_column(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 2, column 7"):
        rows(tmp_path / "a.json", '[{"q": 1},\n{"q": ')


def test_parquet_and_saved_data_sets(tmp_path: Path) -> None:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"q": ["hi", "ho"], "a": ["x", None]}), tmp_path / "a.parquet")
    opened = open_rows(UPath(tmp_path / "a.parquet"))
    assert opened.columns == ("q", "a")
    assert [(r.line, r.value) for r in opened.rows] == [(1, {"q": "hi", "a": "x"}), (2, {"q": "ho", "a": None})]
    kinds = datasets.Features({"q": datasets.Value("string"), "a": datasets.ClassLabel(names=["no", "yes"])})
    dataset = datasets.Dataset.from_list(
        [{"q": "hi", "a": 1}, {"q": "ho", "a": 0}, {"q": "hu", "a": None}], features=kinds
    )
    datasets.DatasetDict({"train": dataset.select([2, 0])}).save_to_disk(str(tmp_path / "saved"))
    opened = open_rows(UPath(tmp_path / "saved"))
    assert (opened.format, opened.columns) == ("dataset", ("q", "a"))
    assert [r.value for r in opened.rows] == [{"q": "hu", "a": None}, {"q": "hi", "a": "yes"}]
    with pytest.raises(DataError, match="no split 'test'"):
        open_rows(UPath(tmp_path / "saved"), options=ReadOptions(split="test"))


def test_unknown_formats_are_refused_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(DataError, match="no Parquet file"):
        open_rows(UPath(tmp_path / "a.parquet"))
    (tmp_path / "a.bin").write_bytes(b"hello")
    with pytest.raises(DataError, match="no known format") as error:
        open_rows(UPath(tmp_path / "a.bin"))
    assert "`format`" in error.value.hint
    with pytest.raises(DataError, match=r"is a folder.*\n.*\*\.jsonl"):
        open_rows(UPath(tmp_path))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252", "utf-32"])
def test_text_is_read_in_its_encoding(tmp_path: Path, encoding: str) -> None:
    text = "q,a\n" + "".join(f"Où est le café n° {n} à l'hôtel “Été” ?,réponse\n" for n in range(50))
    found = rows(tmp_path / "a.csv", text.encode(encoding))
    assert [r.value["q"] for r in found] == [f"Où est le café n° {n} à l'hôtel “Été” ?" for n in range(50)]


TEXTS = {
    "latin": ("where is my parcel, please", "delivery"),
    "cyrillic": ("где моя посылка", "доставка"),
    "chinese": ("我的包裹在哪里我想退货" * 30, "退货"),
    "mixed": ("我的 parcel где é 🙂", "ok"),
}


@pytest.mark.parametrize("script", TEXTS)
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark_is_read(tmp_path: Path, script: str, encoding: str) -> None:
    prompt, completion = TEXTS[script]
    lines = [{"q": f"{prompt} {n}", "a": completion} for n in range(20)]
    table = "q;a\n" + "".join(f"{row['q']};{row['a']}\n" for row in lines)
    objects = "\n".join(json.dumps(row, ensure_ascii=False) for row in lines)
    whole = json.dumps(lines, ensure_ascii=False, indent=1)
    for name, text in (("a.csv", table), ("a.jsonl", objects), ("a.json", whole), ("b.jsonl", whole)):
        path = tmp_path / name
        found = rows(path, text.encode(encoding))
        assert detect(UPath(path)) == encoding
        assert [row.value for row in found] == lines, name


LONG = {  # frequent characters, one of which (上, U+4E0A) has the byte of a line end
    "chinese": (
        "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下过子说产，。",
        "退款",
    ),
    "japanese": (
        "のにはをたがでてとしれさいるんもなかこどうすあつよりまくお商品注文届返金送料住所変更確認一上",
        "返金",
    ),
    "korean": (
        "이다는에을가의하고지를로한기사은도어시나리인자아대해일그부정수스라제으상있들주안보원장전여서구",
        "환불",
    ),
}


@pytest.mark.parametrize("script", LONG)
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("length", [100, 400, 3000])
def test_utf16_without_a_mark_is_read_in_long_rows_without_spaces(
    tmp_path: Path, script: str, encoding: str, length: int
) -> None:
    letters, completion = LONG[script]
    random_ = random.Random(f"{script} {length}")
    expected = [{"q": "".join(random_.choices(letters, k=length)), "a": completion} for _ in range(60)]
    table = "q,a\r\n" + "".join(f"{row['q']},{row['a']}\r\n" for row in expected)
    objects = "\n".join(json.dumps(row, ensure_ascii=False) for row in expected)
    whole = json.dumps(expected, ensure_ascii=False, separators=(",", ":"))
    for name, text in (("a.csv", table), ("a.jsonl", objects), ("a.json", whole), ("b.jsonl", whole)):
        found = rows(tmp_path / name, text.encode(encoding))
        assert detect(UPath(tmp_path / name)) == encoding, name
        assert [row.value for row in found] == expected, name


def other_files(folder: Path) -> dict[str, bytes]:
    """Files of every kind that hold NULs, control characters, line ends and texts, and are not UTF-16."""
    with sqlite3.connect(folder / "a.db") as database:
        database.execute("create table rows (question text, answer text)")
        database.executemany("insert into rows values (?, ?)", [(f"where is it?\n{n}", "delivery") for n in range(500)])
    random_ = random.Random(5)
    tokens = [min(int(random_.paretovariate(0.4)), 50_256) for _ in range(20_000)]
    sound = [int(random_.gauss(0, 4_000)) for _ in range(20_000)]
    lines = "".join(f"Où est le café n° {n} ?,livraison\r\n" for n in range(500))
    return {
        "database": (folder / "a.db").read_bytes(),
        "program": Path(sys.executable).read_bytes()[: 1 << 17],
        "pickle": pickle.dumps([{"q": "我的包裹在哪里" * 20, "n": n / 7} for n in range(300)]),
        "tokens": struct.pack(f"<{len(tokens)}H", *tokens),
        "sound": struct.pack(f"<{len(sound)}h", *(max(-32_768, min(32_767, value)) for value in sound)),
        "floats": struct.pack("<9000f", *(random_.gauss(0, 1) for _ in range(9000))),
        "random": random_.randbytes(1 << 16),
        "utf-32": ("问题,回答\n" + "我的包裹在哪里,退货\n" * 200).encode("utf-32-le"),
        "gbk, strings of C": ("我的包裹在哪里,退货\n\0" * 200).encode("gbk"),
        "cp1252, strings of C": lines.replace("\n", "\n\0").encode("cp1252"),
        "utf-8, strings of C": lines.replace("\n", "\n\0").encode(),
        "utf-8, one NUL": ("ab,cd\0\n" + "12,23\n" * 500).encode(),
        "utf-8": ("问题,回答\n" + "我的包裹在哪里,退货\n" * 200).encode(),
        "shift_jis": ("質問,回答\n" + "荷物はどこですか,返品\n" * 200).encode("shift_jis"),
    }


def test_no_other_file_is_detected_as_utf16(tmp_path: Path) -> None:
    for kind, content in other_files(tmp_path).items():
        for start in range(4):
            assert of_head(content[start:][: 1 << 16]) is None, (kind, start)


def test_utf16_without_a_line_end_in_its_head_is_refused_with_a_hint_to_the_option(tmp_path: Path) -> None:
    row = "".join(random.Random(1).choices(LONG["chinese"][0], k=40_000))
    (tmp_path / "a.csv").write_bytes(f"{row},退款\n".encode("utf-16-le"))
    with pytest.raises(DataError, match=r"a\.csv is no text") as caught:
        detect(UPath(tmp_path / "a.csv"))
    assert "`encoding` (utf-16-le?" in caught.value.hint


def test_other_bytes_with_nul_are_refused_or_read_as_utf8(tmp_path: Path) -> None:
    for encoding in ("utf-32-le", "utf-32-be"):
        (tmp_path / "a.csv").write_bytes("q,a\nwhere is it?,delivery\n".encode(encoding))
        with pytest.raises(DataError, match=r"a\.csv is no text: of its first \d+ bytes, \d+ are NUL"):
            detect(UPath(tmp_path / "a.csv"))
    table = "q,a\n" + "where is it?,delivery\n" * 20
    for damaged in (table + "\0" * 10, table.replace("delivery\nw", "deli\0\0ery\nw", 3), "q,a\0\n" + "12,2\n" * 9):
        (tmp_path / "b.csv").write_text(damaged, "utf-8")
        assert detect(UPath(tmp_path / "b.csv")) == "utf-8"


def test_a_declared_encoding_is_used(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("q,a\nSiparişim nerede?,kargo\n".encode("cp1254"))
    assert (
        next(iter(open_rows(UPath(tmp_path / "a.csv"), options=ReadOptions(encoding="cp1254")).rows)).value["q"]
        == "Siparişim nerede?"
    )


def test_invalid_bytes_in_a_utf8_file_are_read_as_cp1252_and_change_nothing_else(tmp_path: Path) -> None:
    line = json.dumps({"q": "wo ist das Café – schön?"}, ensure_ascii=False).encode()
    cp1252_line = '{"q": "das Café"}'.encode("cp1252")
    path = tmp_path / "a.jsonl"
    found = rows(path, b"\n".join([line] * 10 + [cp1252_line] + [line] * 10))
    assert detect(UPath(path)) == "utf-8"
    assert found[10].value == {"q": "das Café"}
    assert found[0].value == found[20].value == {"q": "wo ist das Café – schön?"}


def test_bytes_that_are_not_a_text_are_refused_and_cyrillic_utf16_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(bytes(range(256)) * 8)
    with pytest.raises(DataError, match=r"a\.csv is no text: of its first 2048 bytes, 200 are control"):
        detect(UPath(tmp_path / "a.csv"))
    (tmp_path / "b.csv").write_text("где моя посылка,доставка\n", "utf-16")
    assert detect(UPath(tmp_path / "b.csv")) == "utf-16"
