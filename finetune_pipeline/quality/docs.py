"""Great Expectations' report as one page that can be read anywhere, now and in ten years.

The page is Great Expectations' own (its renderer, its words). What it takes from elsewhere is taken out: six
stylesheets and eleven scripts from four content networks, and a logo whose address carries the project's id, a beacon.
Without these, its icons, folded parts and tables would not be seen; so icons become words, folds become <details>, and
one small stylesheet is put in. A Content-Security-Policy in the page forbids the browser to fetch anything.

    docs/index.html

What it is not: a site with a history. There is one page for one verdict about one state of the data, and it lies
beside that verdict. It has no time of its own either (the manifest has), so the same data gives the same page.
"""

from __future__ import annotations

import copy
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bs4 import BeautifulSoup, Tag
    from great_expectations.core import ExpectationSuiteValidationResult

# Great Expectations' icon class: what is shown, whether it stands for success, and the word for it in a table.
_ICONS = {
    "fa-check-circle": ("✔", "good", "passed"),
    "fa-check": ("✔", "good", "passed"),
    "fa-times": ("✘", "bad", "failed"),
    "fa-exclamation-triangle": ("⚠", "bad", "error"),
}
# What the page draws on from elsewhere, what needs a script to work, and what advertises.
_GONE = "script, link, style, img, footer, iframe, object, nav, .modal, .card"
# The time differs between two runs over the same data; the share of expectations met would be taken for that of rows.
_ROWS_GONE = ("Run Time", "Success Percent")

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2733; --dim: #5b6b7a; --paper: #ffffff; --line: #d9e0e6;
  --band: #f3f6f8; --good: #18794e; --bad: #c62a2f; --link: #0b68cb; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e9ee; --dim: #9aa8b5; --paper: #14191f; --line: #303a45;
  --band: #1d242c; --good: #5fd39a; --bad: #ff8b85; --link: #79b8ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 1rem; } h4, h5, h6 { margin: 0; font-size: 1rem; }
p { margin: .25rem 0; } a { color: var(--link); } code { overflow-wrap: anywhere; }
table { width: 100%; border-collapse: collapse; table-layout: fixed; }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem; border-bottom: 1px solid var(--line); }
th { color: var(--dim); font-weight: 500; font-size: .85rem; }
th:first-child, td:first-child { width: 7.5rem; } th:nth-child(3), td:nth-child(3) { width: 13rem; }
table.table-sm td:first-child { width: 16rem; color: var(--dim); }
.alert { background: var(--band); border-radius: 6px; padding: .5rem .8rem; margin-top: 1.25rem; }
.lead { color: var(--dim); } .good, .bad, .badge { font-weight: 600; } .good { color: var(--good); }
.bad, .text-danger { color: var(--bad); }
@media (max-width: 40rem) { body { padding: 1rem; } th, td { padding: .35rem .3rem; overflow-wrap: anywhere; }
  th:first-child, td:first-child { width: 4.5rem; } th:nth-child(3), td:nth-child(3) { width: 30%; }
  table.table-sm td:first-child { width: 45%; } }
"""

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>$title</title>
<style>$style</style>
</head>
<body>
<h1>$title</h1>
<p>$summary</p>
$body
</body>
</html>
""")


def write(result: ExpectationSuiteValidationResult, folder: Path, title: str, summary: str) -> Path:
    """Write `folder`/index.html, and give its path. `summary` is the verdict's sentence, shown on top."""
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "index.html"
    page.write_text(offline(_render(result), title, summary), "utf-8")
    return page


def _render(result: ExpectationSuiteValidationResult) -> str:
    """Great Expectations' page, without what differs between two runs over the same data."""
    from great_expectations.render.renderer import ValidationResultsPageRenderer
    from great_expectations.render.view import DefaultJinjaPageView

    shown = copy.deepcopy(result)
    for volatile in ("batch_markers", "batch_spec", "batch_parameters", "active_batch_definition"):
        shown.meta.pop(volatile, None)
    for each in shown.results:
        value = each.result.get("observed_value")
        if hasattr(value, "item"):  # a number of numpy's, which the renderer cannot print
            each.result["observed_value"] = value.item()
        elif isinstance(value, list):  # the names of all columns
            each.result["observed_value"] = f"{len(value)} columns"
    page = ValidationResultsPageRenderer(run_info_at_end=True).render(shown)
    return str(DefaultJinjaPageView().render(page)).replace("<br> Data asset: None", "")


def offline(page: str, title: str, summary: str) -> str:
    """Take out of a page of Data Docs all that is fetched, run, or only seen with either; pure."""
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(page, "html.parser")
    for each in soup.select(_GONE):
        each.decompose()
    for row in soup.select("tr"):
        if any(volatile in row.get_text() for volatile in _ROWS_GONE):
            row.decompose()
    for icon in soup.select("i"):
        _spell(soup, icon)
    for fold in soup.select("div.collapse"):
        _unfold(soup, fold)
    _one_table(soup)
    for tag in soup.find_all(True):
        _plain(tag)
    body = soup.body.decode_contents() if soup.body else ""
    return _PAGE.substitute(style=_STYLE, title=escape(title), summary=escape(summary), body=body)


def _one_table(soup: BeautifulSoup) -> None:
    """Great Expectations makes a section for each column. Here each column has one or two expectations: they go into
    one table, what failed first."""
    sections = [section for section in soup.select(".ge-section") if section.select_one("table.table:not(.table-sm)")]
    tables = [section.select_one("table.table:not(.table-sm)") for section in sections]
    rows = [row for table in tables if table for row in table.select("tbody > tr")]
    if not tables or tables[0] is None or tables[0].tbody is None:
        return
    for row in sorted(rows, key=lambda row: row.select_one("td:first-child .bad") is None):
        tables[0].tbody.append(row)
    for section in sections[1:]:
        section.decompose()
    heading = sections[0].select_one("h5")
    if heading is not None:
        heading.string = "Expectations"


def _spell(soup: BeautifulSoup, icon: Tag) -> None:
    """An icon of a font becomes a sign, and in a table, where it stands alone, a sign and a word."""
    known = next((_ICONS[name] for name in icon.get("class") or [] if name in _ICONS), None)
    if known is None:
        icon.decompose()
        return
    sign, kind, word = known
    alone = icon.find_parent("td") is not None
    spelled = soup.new_tag("span", attrs={"class": kind})
    spelled.string = f"{sign} {word}" if alone else sign
    icon.replace_with(spelled)


def _unfold(soup: BeautifulSoup, fold: Tag) -> None:
    """What a script would open becomes <details>, with the link that opened it as its <summary>."""
    opener = fold.find_previous("a", attrs={"data-toggle": "collapse"})
    summary = soup.new_tag("summary")
    summary.string = opener.get_text(" ", strip=True) if opener else "More"
    if opener:
        opener.decompose()
    fold.name = "details"
    fold.insert(0, summary)


def _plain(tag: Tag) -> None:
    """No inline style or script; links to pages of the site that does not exist here become text."""
    for name in [n for n in tag.attrs if n == "style" or n.startswith(("on", "data-", "aria-"))]:
        del tag[name]
    if tag.name == "a" and not str(tag.get("href", "")).startswith("#"):
        tag.unwrap()
    elif tag.name == "th" and not tag.get_text(strip=True):
        tag.decompose()
