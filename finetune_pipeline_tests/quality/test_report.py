"""The report page of the quality gate: escaped, one file, what failed first."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

from finetune_pipeline.quality import report
from finetune_pipeline.quality.gate import evaluate_quality
from finetune_pipeline.quality.losses import Losses
from finetune_pipeline.quality.table import frame_of
from finetune_pipeline_tests.quality.conftest import check, declare, row, rows

KEY = "AKIA" + "QYLPMN5HHHFPZAM2"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    task = declare(
        quality={
            "min_rows": 10,
            "expectations": [
                {
                    "type": "expect_column_value_lengths_to_be_between",
                    "kwargs": {"column": "prompt", "min_value": 400},
                    "severity": "warning",
                    "description": "prompts are <long>",
                }
            ],
        }
    )
    secret = row(
        500, prompt=f"my address is jane.doe@example.org, the key {KEY}", completion="<script>alert(1)</script>"
    )
    examples = [*rows(40, bad=9), secret]
    losses = Losses.of(task, len(examples), 4, {})
    checked, frame = check(examples, task, 4), frame_of(examples, task)
    folder = tmp_path_factory.mktemp("out")
    verdict = evaluate_quality(checked, frame, losses, task.quality, "c0ffee")
    report.write(checked, frame, verdict, folder, "Quality of <tickets>")
    return folder


@pytest.fixture(scope="module")
def soup(out: Path) -> BeautifulSoup:
    return BeautifulSoup((out / "report.html").read_text("utf-8"), "html.parser")


def test_the_page_fetches_and_runs_nothing(out: Path, soup: BeautifulSoup) -> None:
    text = (out / "report.html").read_text("utf-8")
    assert not soup.select("script, link, img, iframe, object, embed, a, [src], [srcset], [onclick], [style]")
    assert not re.search(r"url\(|@import|https?://", text)
    assert "default-src 'none'" in text
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "validation_result.json"]


def test_what_is_not_met_comes_first(soup: BeautifulSoup) -> None:
    assert [heading.get_text(" ", strip=True) for heading in soup.select("h2")] == [
        "Not met (2)", "Warnings (1)", "Met (18)"
    ]  # fmt: skip
    assert [article["id"] for article in soup.select("article.bad")] == ["row_ok", "completion_valid"]
    assert "✘ Not met" in soup.select("article")[0].get_text()


def test_title_and_verdict_are_text_on_top(soup: BeautifulSoup) -> None:
    assert soup.h1 is not None and soup.h1.get_text() == "Quality of <tickets>"
    text = soup.get_text(" ", strip=True)
    assert "The data did not pass the gate" in text
    assert "75.6 % of 41 rows pass every rule, 95 % required" in text
    assert "Prompts are <long>" in text


def test_up_to_five_example_rows_for_what_is_not_met(soup: BeautifulSoup) -> None:
    [article] = soup.select("article#completion_valid")
    shown = article.select(".row")
    assert [row.code.get_text() for row in shown if row.code] == [f"row{n}" for n in range(5)]
    assert "t.csv:0" in shown[0].get_text()
    assert "10 rows do not meet this; the first 5" in article.get_text()
    assert article.details is not None and article.details.has_attr("open")


def test_what_is_wrong_with_a_row_is_named_where_all_rules_are_meant(soup: BeautifulSoup) -> None:
    [article] = soup.select("article#row_ok")
    assert "t.csv:0 · row0 · does not meet: completion valid" in article.get_text()


def test_personal_data_and_secrets_of_example_rows_are_masked(out: Path, soup: BeautifulSoup) -> None:
    [article] = soup.select("article#no_personal_data")
    assert "my address is <EMAIL>, the key <AWS_KEY>" in article.get_text()
    for path in (out / "report.html", out / "validation_result.json"):
        assert "jane.doe" not in path.read_text("utf-8") and KEY not in path.read_text("utf-8")


def test_the_stored_result_is_great_expectations_own_without_texts(out: Path) -> None:
    import json

    stored = json.loads((out / "validation_result.json").read_text("utf-8"))
    assert stored["success"] is False
    assert [suite["suite_name"] for suite in stored["suites"]] == ["rows", "table"]
    [valid] = [
        each
        for each in stored["suites"][0]["results"]
        if each["expectation_config"]["meta"]["name"] == "completion_valid"
    ]
    assert valid["result"]["unexpected_count"] == 10 and valid["expectation_config"]["kwargs"]["mostly"] == 0.95
    assert "parcel" not in json.dumps(stored)


def test_a_long_text_is_shown_from_its_beginning_and_its_end() -> None:
    shown = report.excerpt("begin " + "x " * 500 + "the end")
    assert shown.startswith("begin x") and shown.endswith("the end") and " … " in shown
    assert len(shown) < 400
    assert report.excerpt(None) == ""
