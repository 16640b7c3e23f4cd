from __future__ import annotations

import re
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

from finetune_pipeline.quality import docs, rules, suite
from finetune_pipeline_tests.quality.conftest import declare, row, rows


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    secret = row(500, prompt="my address is jane.doe@example.org", answer="swordfish")
    task = declare()
    result = suite.run(rules.table([*rows(20, bad=1), secret], task, 4, {}), task, "3fa9")
    return docs.write(result, tmp_path_factory.mktemp("docs"), "Quality of <tickets>", "90.4 % & too few")


def test_the_page_fetches_and_runs_nothing(page: Path) -> None:
    text = page.read_text("utf-8")
    soup = BeautifulSoup(text, "html.parser")
    assert not soup.select("script, link, img, iframe, object, embed, [src], [srcset], [onclick], [style]")
    assert not re.search(r"url\(|@import|https?://", text)
    assert "default-src 'none'" in text
    assert [path.name for path in page.parent.iterdir()] == ["index.html"]


def test_links_stay_within_the_page(page: Path) -> None:
    soup = BeautifulSoup(page.read_text("utf-8"), "html.parser")
    assert all(str(a["href"]).startswith("#") for a in soup.select("a[href]"))


def test_passed_and_failed_can_be_read_as_text(page: Path) -> None:
    soup = BeautifulSoup(page.read_text("utf-8"), "html.parser")
    table = {cells[1]: cells[0] for tr in soup.select("tr") if len(cells := _cells(tr)) == 3}
    assert table["no id is used twice"] == "✔ passed"
    broken = [says for says, status in table.items() if status == "✘ failed"]
    assert len(broken) == 2  # all rules together, and that of the answers
    assert broken[0].startswith("the answer is valid JSON of the declared schema, in at least 95 % of the rows")
    assert list(table.values())[1:3] == ["✘ failed"] * 2  # what failed stands first, below the headings
    assert len(table) == len(suite.build(declare()).expectations) + 1
    assert "Status: ✘ Failed" in soup.get_text(" ", strip=True)


def test_title_and_verdict_stand_on_top_and_are_text(page: Path) -> None:
    soup = BeautifulSoup(page.read_text("utf-8"), "html.parser")
    assert soup.h1 is not None and soup.h1.get_text() == "Quality of <tickets>"
    assert "90.4 % & too few" in soup.get_text()


def test_no_text_of_a_row_lands_in_the_page(page: Path) -> None:
    text = page.read_text("utf-8")
    assert "jane" not in text and "swordfish" not in text and "parcel" not in text


def test_folded_parts_become_details() -> None:
    opener = '<p><a data-toggle="collapse" href="#x">Show more...</a></p>'
    page = f'<body><div>{opener}<div id="x" class="collapse">in</div></div></body>'
    soup = BeautifulSoup(docs.offline(page, "t", "s"), "html.parser")
    assert soup.details is not None and soup.summary is not None
    assert soup.summary.get_text() == "Show more..."
    assert soup.details.get_text() == "Show more...in"
    assert not soup.select("a")


def _cells(tr: object) -> list[str]:
    assert hasattr(tr, "select")
    return [cell.get_text(" ", strip=True) for cell in tr.select("td, th")]
