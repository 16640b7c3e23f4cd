"""What is learned, token by token, for a few training rows: tokens.json and tokens.html of the `adapter` artifact.

    view = token_view(rows, tokenizer, general)
    view["rows"][0]["parts"]      # [{"kind": "context", "tokens": [[1, "<|im_start|>"], …]},
                                  #  {"kind": "learned", "tokens": [[13218, "red"], [2, "<|im_end|>"]]}]

The rows are the longest, the shortest, the ones with the most turns, with and without a rejected completion, and others
spread evenly over the training rows. Kinds of tokens: `context` (read, not learned), `learned`, `rejected` (learned to
be less likely), `general` (texts that hold the model to its base). In tokens.html a long context is cut in its middle.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypedDict

from finetune_pipeline.train.tokenize import Completion, TokenizedExample

Kind: TypeAlias = Literal["context", "learned", "rejected", "general"]
ROWS, GENERAL_TEXTS = 10, 2
LONGEST_CONTEXT = 400  # tokens of one part in tokens.html and on the terminal
TITLES: dict[Kind, str] = {
    "context": "read, not learned",
    "learned": "learned",
    "rejected": "rejected: learned to be less likely",
    "general": "general text: held to the base model",
}


class Part(TypedDict):
    """Tokens of one kind that follow each other: id and text of each."""

    kind: Kind
    tokens: list[tuple[int, str]]


class ViewRow(TypedDict):
    """One row: its prompt and completions, in order. `learned`: the number of learned tokens."""

    id: str
    learned: int
    parts: list[Part]


class TokenView(TypedDict):
    """tokens.json. `of_rows`, `tokens`, `learned`: numbers over all training rows."""

    of_rows: int
    tokens: int
    learned: int
    rows: list[ViewRow]
    general: list[ViewRow]


def token_view(
    rows: Sequence[TokenizedExample], tokenizer: Any, general: Sequence[TokenizedExample] = (), count: int = ROWS
) -> TokenView:
    """The view of `count` of the training rows, and of the first general texts (replay.whole_texts)."""
    return {
        "of_rows": len(rows),
        "tokens": sum(len(row.prompt) + sum(len(each.ids) for each in row.completions) for row in rows),
        "learned": sum(row.learned for row in rows),
        "rows": [_view_row(row, tokenizer) for row in typical(rows, count)],
        "general": [_view_row(row, tokenizer, "general") for row in general[:GENERAL_TEXTS]],
    }


def write_view(folder: Path, view: TokenView, task: str) -> None:
    """tokens.json and tokens.html."""
    (folder / "tokens.json").write_text(json.dumps(view, ensure_ascii=False), "utf-8")
    (folder / "tokens.html").write_text(page(view, task), "utf-8")


def typical(rows: Sequence[TokenizedExample], count: int) -> list[TokenizedExample]:
    """At most `count` rows that show what there is, in the order of `rows`."""
    if not rows:
        return []
    indices = range(len(rows))
    wanted = [
        max(indices, key=lambda i: rows[i].tokens),
        min(indices, key=lambda i: rows[i].tokens),
        max(indices, key=lambda i: len(rows[i].completions[0].spans or ())),
        max(indices, key=lambda i: len(rows[i].completions)),
        min(indices, key=lambda i: len(rows[i].completions)),
        *(i * len(rows) // count for i in range(count)),
        *indices[:count],
    ]
    return [rows[i] for i in sorted(list(dict.fromkeys(wanted))[:count])]


def page(view: TokenView, task: str) -> str:
    """tokens.html: one file without scripts; all text is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("finetune_pipeline.train", ".")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"visible": visible}
    cut = {**view, "rows": [shortened(row) for row in view["rows"]]}
    text: str = environment.get_template("tokens.html.j2").render(view=cut, task=task, titles=TITLES)
    return text


def markdown(view: TokenView, count: int) -> str:
    """The first rows for Dagster, which shows no colors: learned tokens are bold, rejected ones struck out. Marks need
    blanks around them where the text begins or ends with punctuation."""
    lines = [f"{view['learned']:,} of {view['tokens']:,} tokens are learned (**bold**)."]
    for row in view["rows"][:count]:
        lines += ["", f"{_plain(row['id'])}:", "", "".join(_marked(part) for part in shortened(row)["parts"])]
    return "\n".join(lines)


def _marked(part: dict[str, Any]) -> str:
    mark = {"learned": "**", "rejected": "~~"}.get(part["kind"], "")
    text = _plain("".join(piece for _, piece in part["tokens"]))
    more = f" … {part['hidden']:,} more tokens … " if part["hidden"] else ""
    return f" {mark}{text.strip()}{mark} " if mark else text + more


def _plain(text: str) -> str:
    """The text as Markdown that shows it as it is: every character that could be markup is escaped."""
    return re.sub(r"([\\`*_{}\[\]<>()#+\-.!|~&:@$^=\"'])", r"\\\1", visible(text))


def shortened(row: ViewRow) -> dict[str, Any]:
    """The row with long contexts cut in their middle; `hidden`: the tokens that a part leaves out, after its first
    half."""
    half, parts = LONGEST_CONTEXT // 2, list[dict[str, Any]]()
    for part in row["parts"]:
        tokens = part["tokens"]
        if part["kind"] == "context" and len(tokens) > LONGEST_CONTEXT:
            hidden = len(tokens) - 2 * half
            parts += [
                {**part, "tokens": tokens[:half], "hidden": hidden},
                {**part, "tokens": tokens[-half:], "hidden": 0},
            ]
        else:
            parts.append({**part, "hidden": 0})
    return {**row, "parts": parts}


def visible(text: str) -> str:
    """The text with line breaks, and other characters that would not be seen (or would change the direction, or a
    terminal), as escapes."""
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def _escape(char: str) -> str:
    if char in "\n\t\r":
        return {"\n": "⏎", "\t": "⇥", "\r": "␍"}[char]
    return char.encode("unicode_escape").decode("ascii")


def _view_row(row: TokenizedExample, tokenizer: Any, kind: Kind = "learned") -> ViewRow:
    parts: list[Part] = []
    _add(parts, "context", row.prompt, tokenizer, row.prompt)
    for index, completion in enumerate(row.completions):
        own: Kind = "rejected" if index else kind
        for start, stop, learned in _runs(completion):
            before = [*row.prompt, *completion.ids[:start]]
            _add(parts, own if learned else "context", completion.ids[start:stop], tokenizer, before)
    return {"id": row.id, "learned": row.learned, "parts": parts}


def _add(parts: list[Part], kind: Kind, ids: list[int], tokenizer: Any, before: Sequence[int]) -> None:
    if ids:
        pieces = token_texts(tokenizer, ids, before[-1] if before is not ids and before else None)
        parts.append({"kind": kind, "tokens": list(zip(ids, pieces, strict=True))})


def _runs(completion: Completion) -> list[tuple[int, int, bool]]:
    """(start, stop, learned) of the consecutive tokens of a completion."""
    spans = completion.spans if completion.spans is not None else ((0, len(completion.ids)),)
    runs, at = list[tuple[int, int, bool]](), 0
    for start, stop in spans:
        runs += [(at, start, False)] if start > at else []
        runs.append((start, stop, True))
        at = stop
    return [*runs, (at, len(completion.ids), False)] if at < len(completion.ids) else runs


def token_texts(tokenizer: Any, ids: Sequence[int], before: int | None = None) -> list[str]:
    """The text that each token adds after the one before it; its name in the vocabulary where it is a part of a
    character. (Decoded alone, a token of a SentencePiece tokenizer loses its leading blank.)"""
    texts = []
    for token in ids:
        alone = tokenizer.decode([token])
        if before is not None:
            start, both = tokenizer.decode([before]), tokenizer.decode([before, token])
            alone = both[len(start) :] if both.startswith(start) else alone
        texts.append(str(tokenizer.convert_ids_to_tokens(token)) if "\ufffd" in alone or not alone else alone)
        before = token
    return texts
