"""What YAML reads otherwise than it looks is refused, with its line and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_pipeline.config import load_task
from finetune_pipeline.errors import DeclarationError
from finetune_pipeline.task_yaml import MAX_BYTES, parse

GOOD = "name: tickets\nsources: [{path: a.csv}]\nbase: {path: m, licence: mit}\n"
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefg", "bcdefgh", strict=True)
)


def refusal(raw: bytes) -> str:
    with pytest.raises(DeclarationError) as caught:
        parse(raw, "data/tickets/task.yaml")
    assert caught.value.message.startswith("data/tickets/task.yaml is ") and caught.value.cure
    return caught.value.message


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("name: a\ntrain:\n  rank: 4\n  epochs: 1\n  rank: 8\n", 5, "`rank` stands twice (first in line 3)"),
        ("name: a\nsplit: {test: 0.1, test: 0.2}\n", 2, "`test` stands twice (first in line 2)"),
        ("a: 1\nb: !!python/object/apply:os.system [ls]\n", 2, "the tag tag:yaml.org,2002:python/object/apply"),
        ("a: 1\nb: !secret x\n", 2, "the tag !secret"),
        ("a: 1\nb: !!str 2\n", 2, "the tag tag:yaml.org,2002:str"),
        ("a: 1\nb: " + "[" * 100_000, 2, "nested more than 100 levels"),
        ("a: 1\nb:\n" + "".join(" " * n + "x:\n" for n in range(1, 150)), 101, "nested more than 100 levels"),
        (LAUGHS, 5, "more than 50000 values"),
        ("a: 1\nb: &b [1, *b]\n", 2, "*b stands in what it refers to"),
        ("a: *nothing\n", 1, "undefined alias"),
        ("a: 1\nb: .inf\n", 2, ".inf is no finite number"),
        ("a: 1\nb: [-.INF]\n", 2, "-.INF is no finite number"),
        ("a: 1\nb: .nan\n", 2, ".nan is no finite number"),
        ("a: 1\nb: 1.0e+999\n", 2, "1.0e+999 is no finite number"),
        ("a: 1\nb: 2026-13-45\n", 2, "month must be in"),
        ("a: 1\nb: " + "9" * 5000, 2, "limit"),
        ("a: 1\nb: [\n", 3, "expected the node content"),
        ("a: 1\n---\na: 2\n", 2, "but found another document"),
        ("a: 1\nb: \x07\n", 2, "the control character U+0007"),
        ("a: 1\n? [x]\n: 2\n", 2, "unhashable"),
    ],
)
def test_what_reads_otherwise_than_it_looks_is_refused_with_its_line(text: str, line: int, said: str) -> None:
    message = refusal(text.encode())
    assert f"no valid YAML, line {line}: " in message
    assert said in message


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "cp1252"])
def test_another_encoding_is_named(encoding: str) -> None:
    assert "it is no UTF-8" in refusal(GOOD.replace("a.csv", "ä.csv").encode(encoding))


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
