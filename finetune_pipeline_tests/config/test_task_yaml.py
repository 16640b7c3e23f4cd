"""Values that YAML 1.1 would read differently than they look are errors with line and hint."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import pytest

from finetune_pipeline.config import load_task
from finetune_pipeline.config.task_yaml import MAX_BYTES, parse
from finetune_pipeline.errors import DeclarationError

VALID = "name: tickets\nsources: [{path: a.csv}]\nbase: {path: m, license: mit}\n"
BILLION_LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefg", "bcdefgh", strict=True)
)


def refusal(raw: bytes) -> str:
    with pytest.raises(DeclarationError) as caught:
        parse(raw, "data/tickets/task.yaml")
    assert caught.value.message.startswith("data/tickets/task.yaml is ") and caught.value.hint
    return caught.value.message


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        ("name: a\ntrain:\n  rank: 4\n  epochs: 1\n  rank: 8\n", 5, "`rank` occurs twice (first in line 3)"),
        ("name: a\nsplit: {test: 0.1, test: 0.2}\n", 2, "`test` occurs twice (first in line 2)"),
        ("a: 1\nb: !!python/object/apply:os.system [ls]\n", 2, "the tag tag:yaml.org,2002:python/object/apply"),
        ("a: 1\nb: !secret x\n", 2, "the tag !secret"),
        ("a: 1\nb: !!str 2\n", 2, "the tag tag:yaml.org,2002:str"),
        ("a: 1\nb: " + "[" * 100_000, 2, "nested more than 100 levels"),
        ("a: 1\nb:\n" + "".join(" " * n + "x:\n" for n in range(1, 150)), 101, "nested more than 100 levels"),
        (BILLION_LAUGHS, 5, "more than 50000 values"),
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
def test_yaml_that_is_invalid_or_ambiguous_is_an_error_with_its_line(text: str, line: int, expected: str) -> None:
    message = refusal(text.encode())
    assert f"not valid YAML, line {line}: " in message
    assert expected in message


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("a: 1\na: 2\n", "remove one of the two lines"),
        ("a: " + "[" * 150, "move the values into a file that `sources` names"),
        (BILLION_LAUGHS, "move the values into a file that `sources` names"),
    ],
)
def test_the_hint_says_what_to_do(text: str, hint: str) -> None:
    with pytest.raises(DeclarationError) as caught:
        parse(text.encode(), "task.yaml")
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    ("value", "expected", "hint"),
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
def test_a_value_that_yaml_reads_as_another_is_an_error_with_its_line(
    value: str, expected: str, hint: str, place: str
) -> None:
    with pytest.raises(DeclarationError) as caught:
        parse(place.format(value).encode(), "task.yaml")
    assert caught.value.message.startswith(f"task.yaml is not valid YAML, line 2: {expected}")
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("text", "expected"),
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
def test_unquoted_text_that_yaml_reads_as_another_type_is_an_error(text: str, expected: str) -> None:
    with pytest.raises(DeclarationError) as caught:
        parse(text.encode(), "task.yaml")
    assert caught.value.message.startswith(f"task.yaml is not valid YAML, line 2: {expected}")
    assert caught.value.hint == "put it in quotes"


def test_unambiguous_values_are_accepted() -> None:
    values = (
        "a: [0, -0, 10, 0.10, 1_000, 0x1f, 089, '010', \"12:30\", a:b, true, 'no', n]\nb: no\nc: 2026-01-05 12:30:00"
    )
    parsed = parse(values.encode(), "x")
    assert parsed["a"] == [0, 0, 10, 0.1, 1000, 31, "089", "010", "12:30", "a:b", True, "no", "n"]
    assert parsed["b"] is False


def test_json_escapes_become_the_character() -> None:
    text = r'{"thanks \ud83d\ude00": "\ud83d\ude00\ud83d\ude01 \U0001f600 \u00e4 \uFFFF"}'
    assert parse(text.encode(), "x") == {"thanks 😀": "😀😁 😀 ä \uffff"}


def test_nesting_beyond_the_recursion_limit_is_an_error() -> None:
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 150)
    try:
        message = refusal(b"a: 1\nb: " + b"[" * 90)
    finally:
        sys.setrecursionlimit(limit)
    assert "line 2: it is nested too deeply" in message


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "cp1252"])
def test_an_encoding_other_than_utf_8_is_an_error(encoding: str) -> None:
    assert "it is not UTF-8" in refusal(VALID.replace("a.csv", "ä.csv").encode(encoding))


def test_a_declaration_larger_than_the_limit_is_an_error() -> None:
    assert "larger than 256 kB" in refusal(b"a: " + b"x" * MAX_BYTES)


def test_common_yaml_is_accepted() -> None:
    text = VALID + "train: &common {epochs: 2}\nother: {<<: *common, epochs: 3}\nagain: *common\nat: 2026-01-05\n"
    parsed = parse(b"\xef\xbb\xbf" + text.encode(), "x")
    assert parsed["other"] == {"epochs": 3} and parsed["again"] == {"epochs": 2}
    assert parse(b"", "x") is None
    assert parse(b"labels: [" + b"label, " * 10_000 + b"x]", "x")["labels"][-1] == "x"


def test_a_quoted_number_has_to_be_finite(tmp_path: Path) -> None:
    (tmp_path / "tickets").mkdir()
    path = tmp_path / "tickets" / "task.yaml"
    path.write_text(VALID + "train: {learning_rate: '1e999', divergence: 'inf'}\n", "utf-8")
    with pytest.raises(DeclarationError) as caught:
        load_task(path.parent)
    assert {problem.split(":")[0] for problem in caught.value.problems} == {"train.learning_rate", "train.divergence"}
