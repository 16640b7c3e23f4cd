"""decision.md: the decision for people, from the Decision alone. Pure: values in, Markdown out.

    # PROMOTE
    the tuned model has 112 of 135 (83.0 %) test rows exactly right, …
    | holds | question | expected | found |

What it is not: the model card (card.py), which describes a model that was promoted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_pipeline.baseline.report import label
from finetune_pipeline.records import Check, Decision
from finetune_pipeline.release.formatting import points
from finetune_pipeline.statistics.formatting import percent

SHOWN = {"holds": "yes", "undecided": "**not shown**"}
HARM = {"gain": "**no: shown to be no better**", "no_worse": "**no: shown to be worse**"}
MEANING = {
    "PROMOTE": "The evidence supports shipping this model.",
    "REJECT": "The evidence speaks against shipping this model.",
    "INCONCLUSIVE": "The evidence does not decide. This is not a pass.",
}


def markdown(decision: Decision, at: str) -> str:
    """The page. `at` is the time of the decision (UTC, ISO 8601)."""
    figures: Mapping[str, Any] = decision.figures
    parts = (
        f"# {decision.outcome}\n\n{MEANING[decision.outcome]}\n\n{_sentence(decision.summary)}",
        "## The tuned model and its opponents\n\n" + opponents(figures),
        "## Every check\n\n" + checks_table(decision.checks),
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
    """The tuned model and its opponents: who has how many rows right, what was asked of the difference, the answer."""
    confidence = percent(1 - 2 * figures["rules"]["significance_level"])
    lines = [
        f"| who | exactly right | tuned is ahead by | {confidence} interval | asked of the tuned model | shown |",
        "|---|---|---|---|---|---|",
    ]
    names = ["tuned", *(name for name in figures["variants"] if name != "tuned")]
    lines += ["| " + " | ".join(_variant(name, figures)) + " |" for name in names if name in figures["variants"]]
    return "\n".join(lines)


def _variant(name: str, figures: Mapping[str, Any]) -> tuple[str, ...]:
    row = figures["variants"][name]
    share = percent(row["exact"] / row["rows"]) if row["rows"] else "no rows"
    right = f"{row['exact']} of {row['rows']} ({share})"
    gain, margin = (figures["findings"].get(f"{kind}:{name}") for kind in ("gain", "no_worse"))
    found = gain or margin
    if not found:
        return title(name, figures), right, "", "", "", ""
    low, high = found["bounds"]
    least = figures["rules"]["min_gain"]
    asked = f"no worse (by at most {points(margin['margin'])})" if margin else "better"
    if gain and least:
        asked += f" by more than {points(least)}"
    answer = SHOWN.get(found["state"]) or HARM["gain" if gain else "no_worse"]
    between = f"{100 * low:+.1f} to {100 * high:+.1f}"
    return title(name, figures), right, points(found["difference"]), between, asked, answer


def title(name: str, figures: Mapping[str, Any]) -> str:
    """What a variant is, for people, with the name that it has elsewhere: "Live version 3 (champion)"."""
    told = f"Live {figures['champion']}" if name == "champion" else label(name)
    return f"{told} ({name})"


def opponents(figures: Mapping[str, Any]) -> str:
    """The table, how to read it, and who is missing from it."""
    text = (
        "All answered the same test rows, and their answers are read by the same rules. Where the lower end of the "
        "interval lies above 0 the tuned model is shown to be better; where the upper end lies below 0, to be worse."
    )
    missing = []
    if figures["champion"] is None:
        missing.append("No version is live, so there is none to compare with.")
    if "classical" not in figures["variants"]:
        missing.append("No classical model was evaluated (there is none for answers in free text).")
    return "\n\n".join([text, variants_table(figures), *missing])


def shown(figures: Mapping[str, Any]) -> str:
    """Power, reuse and, where undecided, how many rows it would take."""
    smallest, reuse = figures["smallest_gain_shown"], figures["findings"]["reuse"]
    rows, chance = figures["rows"], percent(figures["rules"]["power"])
    text = (
        f"{rows} test rows show a gain of {points(smallest)} or more over the best prompt with a chance of {chance}, "
        "with as many rows lost as here; smaller ones they may miss."
        if smallest is not None
        else f"{rows} test rows cannot show any gain with a chance of {chance}."
    )
    text += f" They have decided on {reuse['adapters']} adapter{'s' if reuse['adapters'] != 1 else ''} so far."
    if figures["findings"]["rows"]["state"] != "holds":
        return text + f" To decide anything it takes at least {figures['findings']['rows']['rows_needed']}."
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
