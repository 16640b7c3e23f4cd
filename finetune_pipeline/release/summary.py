"""The outcome that follows from the findings, its summary in one sentence, and how many rows would decide it.

outcome_of(findings)                                    # "INCONCLUSIVE"
summary("INCONCLUSIVE", exact, "few_shot", None, findings)
# "INCONCLUSIVE: the tuned model has 56 of 100 (56 %) test rows exactly right, the best prompted baseline (few_shot)
#  52 of 100 (52 %); not decided: better than few_shot; about 410 test rows in all are needed, at the observed rates"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from finetune_pipeline.baseline.variants import CHAMPION, CLASSICAL, TUNED
from finetune_pipeline.records import Outcome
from finetune_pipeline.release.figures import TEST_ROWS, Finding, Outcomes
from finetune_pipeline.release.formatting import count_and_share


def outcome_of(findings: Mapping[str, Finding]) -> Outcome:
    """REJECT where a finding shows harm, PROMOTE where all hold, else INCONCLUSIVE."""
    if _shown_harm(findings):
        return "REJECT"
    return "PROMOTE" if all(finding.state == "holds" for finding in findings.values()) else "INCONCLUSIVE"


def _shown_harm(findings: Mapping[str, Finding]) -> list[Finding]:
    """With too few test rows, harm on them decides nothing either; harm on general texts does."""
    enough = findings["rows"].state == "holds"
    return [f for f in findings.values() if f.state == "harm" and (enough or f.unit != TEST_ROWS)]


def summary(
    outcome: Outcome,
    exact: Mapping[str, Outcomes],
    best: str | None,
    champion: str | None,
    findings: Mapping[str, Finding],
) -> str:
    """One sentence: the outcome, the exact answers of the tuned model and its opponents, and the reason. `champion`:
    the live version's name."""
    parts = [f"the tuned model has {count_and_share(exact.get(TUNED, {}))} test rows exactly right"]
    if best:
        parts.append(f"the best prompted baseline ({best}) {count_and_share(exact[best])}")
    if CHAMPION in exact:
        parts.append(f"live {champion} has {count_and_share(exact[CHAMPION])}")
    if CLASSICAL in exact:
        parts.append(f"the classical model has {count_and_share(exact[CLASSICAL])}")
    return f"{outcome}: {', '.join(parts)}; {_reason(outcome, findings)}"


def _reason(outcome: Outcome, findings: Mapping[str, Finding]) -> str:
    if outcome == "PROMOTE":
        warnings = [f.check.name for f in findings.values() if not f.check.passed]
        return f"with a warning: {', '.join(warnings)}" if warnings else "all checks hold"
    if outcome == "REJECT":
        return "failed: " + ", ".join(f'"{f.check.name}"' for f in _shown_harm(findings))
    if findings["rows"].state == "undecided":
        return advice(findings)
    undecided = [f.check.name for f in findings.values() if f.state == "undecided"]
    return f"not decided: {', '.join(undecided)}; {advice(findings)}"


def advice(findings: Mapping[str, Finding]) -> str:
    """What is needed to decide the undecided findings."""
    rows = findings["rows"]
    if rows.state == "undecided":
        return f"at least {rows.rows_needed} test rows are needed to decide, and there are {rows.figures['rows']}"
    unmeasured = _unmeasured(findings)
    undecided = [f for name, f in findings.items() if f.state == "undecided" and not (unmeasured and name == "general")]
    parts = [_rows_advice(findings, undecided)] if undecided else []
    return "; ".join([*parts, *([unmeasured] if unmeasured else [])])


def _rows_advice(findings: Mapping[str, Finding], undecided: Sequence[Finding]) -> str:
    needed = rows_needed(findings)
    if not needed:
        return "no number of rows decides at the observed rates: train a better model"
    counts = " and ".join(f"{count} {unit}" for unit, count in needed.items())
    part = "" if all(finding.rows_needed is not None for finding in undecided) else ", which decide a part of it"
    return f"about {counts} in all are needed, at the observed rates{part}"


def _unmeasured(findings: Mapping[str, Finding]) -> str | None:
    """What decides a criterion that no number of rows or texts can, because nothing can be measured."""
    general = findings.get("general")
    if general is None or general.state != "undecided" or general.figures.get("measured", True):
        return None
    return "general ability cannot be measured: give a reason in `release.general_waiver` to promote without it"


def rows_needed(findings: Mapping[str, Finding]) -> dict[str, int]:
    """The largest number that any undecided finding needs, in all, by unit: {"test rows": 410}. Where there are too few
    rows to decide anything, the rates observed on them are no basis either: it is the least declared number then."""
    rows = findings["rows"]
    if rows.rows_needed is not None:
        return {TEST_ROWS: rows.rows_needed}
    needed: dict[str, int] = {}
    for finding in findings.values():
        if finding.state == "undecided" and finding.rows_needed is not None:
            needed[finding.unit] = max(needed.get(finding.unit, 0), finding.rows_needed)
    return needed
