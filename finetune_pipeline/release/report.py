"""decision.md: the decision for people, from the Decision alone.

# PROMOTE
The tuned model has 112 of 135 (83 %) test rows exactly right, …
| holds | check | expected | observed |
"""

from __future__ import annotations

from finetune_pipeline.baseline.variants import CHAMPION, CLASSICAL, TUNED, described
from finetune_pipeline.records import Check, Decision
from finetune_pipeline.release.figures import DecisionFigures, figures_of, pair_of, reuse_of, slices_of
from finetune_pipeline.release.formatting import bullets, points
from finetune_pipeline.statistics.formatting import percent

SHOWN = {"holds": "yes", "undecided": "**not shown**"}
HARM = {"gain": "**no: shown to be no better**", "no_worse": "**no: shown to be worse**"}
MEANING = {
    "PROMOTE": "The evidence supports shipping this model.",
    "REJECT": "The evidence is against shipping this model.",
    "INCONCLUSIVE": "The evidence does not decide. This is not a pass.",
}


def markdown(decision: Decision, at: str) -> str:
    """The page. `at` is the time of the decision (UTC, ISO 8601)."""
    figures = figures_of(decision)
    parts = (
        f"# {decision.outcome}\n\n{MEANING[decision.outcome]}\n\n{_sentence(decision.summary)}",
        "## The tuned model and its opponents\n\n" + opponents(figures),
        "## Every check\n\n" + checks_table(decision.checks),
        _slices(figures),
        "## What this test set can show\n\n" + power_and_reuse(figures),
        f"## What was evaluated\n\nAdapter `{decision.adapter}`, evaluation `{decision.evaluation}`, at {at}, "
        f"by these rules:\n\n" + bullets(figures["rules"]),
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def checks_table(checks: tuple[Check, ...]) -> str:
    def holds(check: Check) -> str:
        return "yes" if check.passed else "warning" if check.severity == "warning" else "**no**"

    rows = (f"| {holds(c)} | {_cell(c.name)} | {_cell(c.expected)} | {_cell(c.observed)} |" for c in checks)
    return "\n".join(("| holds | check | expected | observed |", "|---|---|---|---|", *rows))


def opponents(figures: DecisionFigures) -> str:
    """The table of all variants, how to read it, and which opponents are missing from it."""
    text = (
        "All answered the same test rows, and their answers are read by the same rules. Where the lower end of the "
        "interval lies above 0 the tuned model is shown to be better; where the upper end lies below 0, to be worse."
    )
    missing = []
    if figures["champion"] is None:
        missing.append("No version is live, so there is none to compare with.")
    if CLASSICAL not in figures["variants"]:
        missing.append("No classical model was evaluated (there is none for answers in free text).")
    return "\n\n".join([text, variants_table(figures), *missing])


def variants_table(figures: DecisionFigures) -> str:
    """The tuned model and its opponents: exact answers, the difference, and whether the criterion is shown to hold."""
    confidence = percent(1 - 2 * figures["rules"]["significance_level"])
    lines = [
        f"| variant | exactly right | tuned is ahead by | {confidence} interval | the tuned model has to be | shown |",
        "|---|---|---|---|---|---|",
    ]
    names = [TUNED, *(name for name in figures["variants"] if name != TUNED)]
    lines += ["| " + " | ".join(_variant(name, figures)) + " |" for name in names if name in figures["variants"]]
    return "\n".join(lines)


def _variant(name: str, figures: DecisionFigures) -> tuple[str, ...]:
    row = figures["variants"][name]
    share = percent(row["exact"] / row["rows"]) if row["rows"] else "no rows"
    right = f"{row['exact']} of {row['rows']} ({share})"
    gain, no_worse = pair_of(figures, "gain", name), pair_of(figures, "no_worse", name)
    pair = gain or no_worse
    if not pair:
        return title(name, figures), right, "", "", "", ""
    low, high = pair["bounds"]
    least = figures["rules"]["min_gain"]
    required = "better" + (f" by more than {points(least)}" if least else "")
    if no_worse:
        required = f"not shown to be worse, a loss of {points(no_worse['margin'])} or more excluded"
    criterion = "gain" if gain else "no_worse"
    shown = SHOWN.get(figures["findings"][f"{criterion}:{name}"]["state"]) or HARM[criterion]
    between = f"{100 * low:+.1f} to {100 * high:+.1f}"
    return title(name, figures), right, points(pair["difference"]), between, required, shown


def title(name: str, figures: DecisionFigures) -> str:
    """The name of a variant for people, and its key elsewhere: "Live version 3 (champion)"."""
    return f"Live {figures['champion']} ({name})" if name == CHAMPION else f"{described(name).title} ({name})"


def power_and_reuse(figures: DecisionFigures) -> str:
    """The smallest gain that this test set shows, its reuse and, where undecided, how many rows are needed."""
    smallest, adapters = figures["smallest_gain_shown"], reuse_of(figures)["adapters"]
    rows, chance = figures["rows"], percent(figures["rules"]["power"])
    text = (
        f"{rows} test rows show a gain of {points(smallest)} or more over the best prompt with a power of {chance}, "
        "with as many rows lost as here; they may miss smaller gains."
        if smallest is not None
        else f"{rows} test rows cannot show any gain with a power of {chance}."
    )
    text += f" {adapters} adapter{'s were' if adapters != 1 else ' was'} evaluated on them so far."
    enough = figures["findings"]["rows"]
    if enough["state"] != "holds":
        return text + f" At least {enough['rows_needed']} are needed to decide."
    for unit, count in figures["rows_needed"].items():
        text += f" At the observed rates about {count} {unit} in all are needed to decide."
    return text


def _slices(figures: DecisionFigures) -> str:
    compared = slices_of(figures)
    if not compared or not compared["slices"]:
        return ""
    lines = [
        f"## Slices, against {compared['against']}\n",
        "| slice | rows | tuned | baseline | difference, and its one-sided bounds | state |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in compared["slices"].items():
        between = f"{points(row['difference'])} ({points(row['low'])} to {points(row['high'])})"
        needs = f", needs {row['rows_needed']} rows" if row["rows_needed"] else ""
        cells = (_cell(name), row["rows"], row["tuned"], row["baseline"], between, row["state"] + needs)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _sentence(summary: str) -> str:
    """The summary without the outcome before it."""
    text = summary.partition(": ")[2]
    return f"{text[:1].upper()}{text[1:]}."


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
