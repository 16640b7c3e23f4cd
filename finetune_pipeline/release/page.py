"""decision.md: the decision for people, from the Decision alone. Pure: values in, Markdown out.

    # PROMOTE
    the tuned model has 112 of 135 (83.0 %) test rows exactly right, …
    | holds | question | expected | found |

What it is not: the model card (card.py), which describes a model that was promoted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_pipeline.records import Check, Decision
from finetune_pipeline.release.words import percent, points

MEANING = {
    "PROMOTE": "The evidence supports shipping this model.",
    "REJECT": "The evidence speaks against shipping this model.",
    "INCONCLUSIVE": "The evidence is too thin to tell. This is not a pass.",
}


def markdown(decision: Decision, at: str) -> str:
    """The page. `at` is the time of the decision (UTC, ISO 8601)."""
    figures: Mapping[str, Any] = decision.figures
    parts = (
        f"# {decision.outcome}\n\n{MEANING[decision.outcome]}\n\n{_sentence(decision.summary)}",
        "## Reasons\n\n" + checks_table(decision.checks),
        "## On the same test rows\n\n" + variants_table(figures),
        _slices(figures),
        "## What this test set can show\n\n" + shown(figures),
        f"## What was judged\n\nAdapter `{decision.adapter}`, evaluation `{decision.evaluation}`, at {at}, "
        f"by these rules:\n\n" + _pairs(figures["rules"]),
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def checks_table(checks: tuple[Check, ...]) -> str:
    def holds(check: Check) -> str:
        return "yes" if check.passed else "warning" if check.severity == "warning" else "**no**"

    rows = (f"| {holds(c)} | {_cell(c.name)} | {_cell(c.expected)} | {_cell(c.observed)} |" for c in checks)
    return "\n".join(("| holds | question | expected | found |", "|---|---|---|---|", *rows))


def variants_table(figures: Mapping[str, Any]) -> str:
    """Every variant's share exactly right, and what the tuned model is ahead by."""
    lines = ["| variant | exactly right | tuned is ahead by | 95 % interval |", "|---|---|---|---|"]
    for name, row in figures["variants"].items():
        found = figures["findings"].get(f"gain:{name}") or figures["findings"].get(name)
        ahead, interval = "", ""
        if found and "interval" in found:
            low, high = found["interval"]
            ahead, interval = points(found["difference"]), f"{points(low)} to {points(high)}"
        share = percent(row["exact"] / row["rows"]) if row["rows"] else "no rows"
        lines.append(f"| {name} | {row['exact']} of {row['rows']} ({share}) | {ahead} | {interval} |")
    return "\n".join(lines)


def shown(figures: Mapping[str, Any]) -> str:
    """Power, reuse and, where undecided, how many rows it would take."""
    smallest, reuse = figures["smallest_gain_shown"], figures["findings"]["reuse"]
    rows = figures["rows"]
    text = (
        f"{rows} test rows show a gain of {points(smallest)} or more with a chance of 80 %; smaller ones they may miss."
        if smallest is not None
        else f"{rows} test rows cannot show any gain with a chance of 80 %."
    )
    text += f" They have decided on {reuse['adapters']} adapter{'s' if reuse['adapters'] != 1 else ''} so far."
    for unit, count in figures["rows_needed"].items():
        text += f" At the rates seen here it takes about {count} {unit} in all to decide."
    return text


def _slices(figures: Mapping[str, Any]) -> str:
    found = figures["findings"].get("slices")
    if not found or not found["slices"]:
        return ""
    lines = [
        f"## Slices, against {found['against']}\n",
        "| slice | rows | tuned | baseline | difference, and its one-sided bounds | state |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in found["slices"].items():
        between = f"{points(row['difference'])} ({points(row['low'])} to {points(row['high'])})"
        needs = f", needs {row['rows_needed']} rows" if row["rows_needed"] else ""
        cells = (_cell(name), row["rows"], row["tuned"], row["baseline"], between, row["state"] + needs)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _pairs(values: Mapping[str, Any]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in values.items())


def _sentence(summary: str) -> str:
    """The summary without the outcome before it."""
    text = summary.partition(": ")[2]
    return f"{text[:1].upper()}{text[1:]}."


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
