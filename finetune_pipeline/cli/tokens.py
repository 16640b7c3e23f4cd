"""`finetune train TASK --show-tokens`: what is learned of ten training rows, in color, on the terminal.

    9f1c…  4 learned tokens
    <|im_start|>user⏎where is my parcel?<|im_end|>⏎<|im_start|>assistant⏎⟦delivery<|im_end|>⟧
    learned: 13218 delivery, 2 <|im_end|>

Learned tokens stand in ⟦ ⟧ as well, so that the output can be read without colors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from finetune_pipeline.train.preview import Preview
from finetune_pipeline.train.token_view import TITLES, Kind, shortened, visible

STYLES: Mapping[Kind, str] = {
    "context": "dim",
    "learned": "bold black on green",
    "rejected": "bold white on red",
    "general": "bold white on blue",
}


def shown(preview: Preview) -> RenderableType:
    """The legend, the rows, the general texts, and the checks of the audit."""
    view = preview.view
    rows = (*view["rows"], *view["general"])
    total = f"{view['learned']:,} of {view['tokens']:,} tokens are learned"
    lines = [Text(f"{len(view['rows'])} of {view['of_rows']:,} training rows; {total}", "bold")]
    lines.append(_legend(part["kind"] for row in rows for part in row["parts"]))
    for row in rows:
        lines += [Text(""), *_row(shortened(row))]
    lines += [Text(""), *(_check(check.passed, check.name, check.observed) for check in preview.audit.checks)]
    return Group(*lines)


def _legend(kinds: Iterable[Kind]) -> Text:
    found = set(kinds)
    return Text("  ").join(Text(TITLES[kind], style) for kind, style in STYLES.items() if kind in found)


def _row(row: Mapping[str, Any]) -> list[Text]:
    body, ids = Text(), list[Text]()
    for part in row["parts"]:
        text = visible("".join(piece for _, piece in part["tokens"]))
        marked = text if part["kind"] == "context" else f"⟦{text}⟧"
        body.append(marked, STYLES[part["kind"]])
        if part["hidden"]:
            body.append(f" … {part['hidden']:,} more tokens … ", "dim italic")
        if part["kind"] != "context":
            listed = ", ".join(f"{token} {visible(piece)}" for token, piece in part["tokens"])
            ids.append(Text(f"{part['kind']}: {listed}", "dim"))
    return [Text(f"{visible(row['id'])}  {row['learned']} learned tokens", "bold"), body, *ids]


def _check(passed: bool, name: str, observed: str) -> Text:
    return Text("✓ ", "green") + Text(name, "") if passed else Text("✗ ", "red") + Text(f"{name}: {observed}", "")
