"""What YAML reads otherwise than it looks is refused, with its line and what to do."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import pytest

from finetune_pipeline.config import load_task
from finetune_pipeline.config.task_yaml import MAX_BYTES, parse
from finetune_pipeline.errors import DeclarationError

GOOD = "name: tickets\nsources: [{path: a.csv}]\nbase: {path: m, license: mit}\n"
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefg", "bcdefgh", strict=True)
)


def refusal(raw: bytes) -> str:
    with pytest.raises(DeclarationError) as caught:
        parse(raw, "data/tickets/task.yaml")
    assert caught.value.message.startswith("data/tickets/task.yaml is ") and caught.value.hint
    return caught.value.message


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("name: a\ntrain:\n  rank: 4\n  epochs: 1\n  rank: 8\n", 5, "`rank` occurs twice (first in line 3)"),
        ("name: a\nsplit: {test: 0.1, test: 0.2}\n", 2, "`test` occurs twice (first in line 2)"),
        ("a: 1\nb: !!python/object/apply:os.system [ls]\n", 2, "the tag tag:yaml.org,2002:python/object/apply"),
        ("a: 1\nb: !secret x\n", 2, "the tag !secret"),
        ("a: 1\nb: !!str 2\n", 2, "the tag tag:yaml.org,2002:str"),
        ("a: 1\nb: " + "[" * 100_000, 2, "nested more than 100 levels"),
        ("a: 1\nb:\n" + "".join(" " * n + "x:\n" for n in range(1, 150)), 101, "nested more than 100 levels"),
        (LAUGHS, 5, "more than 50000 values"),
        ("a: 1\nb: &b [1, *b]\n", 2, "*b is part of the value that it refers to"),
        ("a: *nothing\n", 1, "undefined alias"),
        ("a: 1\nb: .inf\n", 2, ".inf is not a finite number"),
        ("a: 1\nb: [-.INF]\n", 2, "-.INF is not a finite number"),
        ("a: 1\nb: .nan\n", 2, ".nan is not a finite number"),
        ("a: 1\nb: 1.0e+999\n", 2, "1.0e+999 is not a finite number"),
        ("a: 1\nb: 2026-13-45\n", 2, "month must be in"),
        ("a: 1\nb: " + "9" * 5000, 2, "limit"),
        ("a: 1\nb: [\n", 3, "expected the node content"),
        ("a: 1\n---\na: 2\n", 2, "but found another document"),
        ("a: 1\nb: \x07\n", 2, "the control character U+0007"),
        ("a: 1\n? [x]\n: 2\n", 2, "unhashable"),
        ('a: 1\nb: "x\n  y \\U00110000 z"\n', 3, r"the escape \U00110000 is not a character"),
        ('a: 1\nb: "\\Uffffffff"\n', 2, r"the escape \Uffffffff is not a character"),
        ("a: 1\nb: 1" + ":00" * 300 + ".5\n", 2, "is read as a number in base 60"),
        ("a: 1\nb: -0x" + "f" * 5000 + "\n", 2, "int too large to convert to float"),
        ("%YAML 1." + "9" * 5000 + "\n---\na: 1\n", 1, "limit"),
    ],
)
def test_what_reads_otherwise_than_it_looks_is_refused_with_its_line(text: str, line: int, said: str) -> None:
    message = refusal(text.encode())
    assert f"not valid YAML, line {line}: " in message
    assert said in message


@pytest.mark.parametrize(
    ("value", "said", "hint"),
    [
        ("010", "`010` is read as an octal number", "without the 0 before it, or put it in quotes"),
        ("-0_7", "`-0_7` is read as an octal number", "without the 0 before it, or put it in quotes"),
        ("12:30", "`12:30` is read as a number in base 60", "put it in quotes"),
        ("+1:30.5", "`+1:30.5` is read as a number in base 60", "put it in quotes"),
        (r'"a \ud83d"', r"the escape \ud83d is one half of a surrogate pair", "write the character itself"),
        (r'"\ude00\ud83d"', r"the escape \ude00 is one half of a surrogate pair", "write the character itself"),
        (r'"\U0000dead"', r"the escape \udead is one half of a surrogate pair", "write the character itself"),
    ],
)
@pytest.mark.parametrize("place", ["a: 1\nb: {}\n", "a: 1\nb: [x, {}]\n", "a: 1\n? {}\n: x\n"])
def test_a_value_that_is_read_as_another_is_refused_with_its_line(value: str, said: str, hint: str, place: str) -> None:
    with pytest.raises(DeclarationError) as caught:
        parse(place.format(value).encode(), "task.yaml")
    assert caught.value.message.startswith(f"task.yaml is not valid YAML, line 2: {said}")
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("labels: [a,\n  No]\n", "`No` in a list is read as true or false"),
        ("enum:\n- off\n", "`off` in a list is read as true or false"),
        ("enum:\n- 2026-01-05\n", "`2026-01-05` in a list is read as a date"),
        ("properties:\n  on: {}\n", "the key `on` is not read as text"),
        ("properties:\n  1: {}\n", "the key `1` is not read as text"),
        ("properties:\n  2026-01-05: {}\n", "the key `2026-01-05` is not read as text"),
        ("{a: 1,\n ~: 2}\n", "the key `~` is not read as text"),
    ],
)
def test_text_without_quotes_that_is_read_as_another_kind_of_value_is_refused(text: str, said: str) -> None:
    with pytest.raises(DeclarationError) as caught:
        parse(text.encode(), "task.yaml")
    assert caught.value.message.startswith(f"task.yaml is not valid YAML, line 2: {said}")
    assert caught.value.hint == "put it in quotes"


def test_what_looks_like_it_and_is_not_is_read() -> None:
    values = (
        "a: [0, -0, 10, 0.10, 1_000, 0x1f, 089, '010', \"12:30\", a:b, true, 'no', n]\nb: no\nc: 2026-01-05 12:30:00"
    )
    found = parse(values.encode(), "x")
    assert found["a"] == [0, 0, 10, 0.1, 1000, 31, "089", "010", "12:30", "a:b", True, "no", "n"]
    assert found["b"] is False


def test_escapes_as_json_has_them_are_the_character_that_they_mean() -> None:
    text = r'{"thanks \ud83d\ude00": "\ud83d\ude00\ud83d\ude01 \U0001f600 \u00e4 \uFFFF"}'
    assert parse(text.encode(), "x") == {"thanks 😀": "😀😁 😀 ä \uffff"}


def test_nesting_that_python_cannot_follow_is_refused_too() -> None:
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 150)
    try:
        message = refusal(b"a: 1\nb: " + b"[" * 90)
    finally:
        sys.setrecursionlimit(limit)
    assert "line 2: it is nested too deeply" in message


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "cp1252"])
def test_another_encoding_is_named(encoding: str) -> None:
    assert "it is not UTF-8" in refusal(GOOD.replace("a.csv", "ä.csv").encode(encoding))


def test_a_declaration_that_holds_the_data_is_refused() -> None:
    assert "larger than 256 kB" in refusal(b"a: " + b"x" * MAX_BYTES)


def test_what_people_write_is_read() -> None:
    text = GOOD + "train: &common {epochs: 2}\nother: {<<: *common, epochs: 3}\nagain: *common\nat: 2026-01-05\n"
    found = parse(b"\xef\xbb\xbf" + text.encode(), "x")
    assert found["other"] == {"epochs": 3} and found["again"] == {"epochs": 2}
    assert parse(b"", "x") is None
    assert parse(b"labels: [" + b"label, " * 10_000 + b"x]", "x")["labels"][-1] == "x"


def test_a_number_in_quotes_is_finite_too(tmp_path: Path) -> None:
    (tmp_path / "tickets").mkdir()
    path = tmp_path / "tickets" / "task.yaml"
    path.write_text(GOOD + "train: {learning_rate: '1e999', divergence: 'inf'}\n", "utf-8")
    with pytest.raises(DeclarationError) as caught:
        load_task(path.parent)
    assert {problem.split(":")[0] for problem in caught.value.problems} == {"train.learning_rate", "train.divergence"}
