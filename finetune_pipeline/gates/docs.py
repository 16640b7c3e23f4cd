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
from pathlib import Path
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
_GONE = "script, link, style, meta, title, img, footer, iframe, object, .modal, .ge-breadcrumbs, .navbar-brand, .btn-group"

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
th:first-child, td:first-child { width: 7.5rem; } th:last-child:not(:nth-child(2)), td:last-child:not(:nth-child(2)) { width: 13rem; }
table.table-sm td:first-child { width: 16rem; color: var(--dim); }
.alert { background: var(--band); border-radius: 6px; padding: .5rem .8rem; margin-top: 1.25rem; }
.lead { color: var(--dim); } .good { color: var(--good); font-weight: 600; } .bad { color: var(--bad); font-weight: 600; }
.text-danger { color: var(--bad); font-weight: 500; } .badge { font-weight: 600; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .25rem 1rem; padding: 0; margin: 1rem 0 0; }
"""

_HEAD = f"""<head>
<meta charset="utf-8"/>
<meta content="width=device-width, initial-scale=1" name="viewport"/>
<meta content="default-src 'none'; style-src 'unsafe-inline'" http-equiv="Content-Security-Policy"/>
<title></title>
<style>{_STYLE}</style>
</head>"""


def write(result: ExpectationSuiteValidationResult, folder: Path, task: str) -> Path:
    """Write `folder`/index.html, and give its path."""
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "index.html"
    page.write_text(offline(_render(result), f"Data quality of {task}"), "utf-8")
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
    page = ValidationResultsPageRenderer(run_info_at_end=True).render(shown)
    return str(DefaultJinjaPageView().render(page))


def offline(page: str, title: str) -> str:
    """Take out of a page of Data Docs all that is fetched, run, or only seen with either; pure."""
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(page, "html.parser")
    for each in soup.select(_GONE):
        each.decompose()
    for card in soup.select(".card"):
        if "Validation Filter" in card.get_text():
            card.decompose()  # its buttons were scripts
    for icon in soup.select("i"):
        _spell(soup, icon)
    for fold in soup.select("div.collapse"):
        _unfold(soup, fold)
    for row in soup.select("tr"):
        if "Run Time" in row.get_text():
            row.decompose()
    for tag in soup.find_all(True):
        _plain(tag)
    _head(soup, title)
    return str(soup)


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


def _head(soup: BeautifulSoup, title: str) -> None:
    from bs4 import BeautifulSoup as Parse

    head = Parse(_HEAD, "html.parser")
    head.title.string = title
    soup.head.replace_with(head)
    heading = soup.new_tag("h1")
    heading.string = title
    soup.body.insert(0, heading)
