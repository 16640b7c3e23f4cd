"""The decision: PROMOTE, REJECT or INCONCLUSIVE, with every reason. Pure: scores and rules in, a Decision out.

    decide(Evidence(scores, general, groups, adapter="9be0…", evaluation="51aa…"), task.release)

    PROMOTE        every question of criteria.py is answered yes, by the interval and not by the mean alone
    REJECT         an answer is shown to be no: no gain, worse than the classical model or the live version, general
                   ability lost, a slice harmed, the format broken
    INCONCLUSIVE   neither, or fewer test rows than the declared power needs; it says how many it would take

The opponents, on the same test rows: each prompted baseline has to be *beaten* (without tuning, the team would prompt);
the classical model and the live version must be shown to be *no better* by the declared margin (they are there already,
and a candidate may be worth having for other reasons than being better than they are).

Each of these is asked on its own, at the full `alpha`. It is the only sound way without a correction: to compare with
the best of several, chosen on the same rows, is to compare with a maximum of noisy figures; but a model that is truly
no better than some prompt, or truly worse by the margin than another opponent, passes that one question with a chance
of at most `alpha`, so whatever the others say, all of them together pass with no more (the intersection-union test:
Berger, "Multiparameter hypothesis testing and acceptance sampling", Technometrics 24, 1982, 295-300).
`benchmarks/decision.py` simulates it.

What it is not: the generation of answers and scores (evaluate/), or the gate itself, which is the verdict stored with
the evaluation's hash (assets.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from finetune_pipeline.config import Release, Task
from finetune_pipeline.errors import DataError
from finetune_pipeline.evaluate.metrics import PROMPTED
from finetune_pipeline.records import Check, Decision, Json, Score
from finetune_pipeline.release import criteria
from finetune_pipeline.release.criteria import TEST_ROWS, Finding, Groups, Reuse, Right
from finetune_pipeline.release.formatting import share
from finetune_pipeline.release.power import smallest_gain
from finetune_pipeline.release.slices import slices_unharmed

TUNED, CLASSICAL, CHAMPION = "tuned", "classical", "champion"


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that a decision looks at. `scores`: a row for each variant and test row. `general`: pairs of the base's and
    the tuned model's loss on general texts; None when that was not measured. `groups`: test row id -> the group it
    shares with others. `adapter` and `evaluation` are content hashes. `champion`: the live version's name ("version
    3"), None when nothing is live; its scores are those of the variant `champion`."""

    scores: Sequence[Score]
    general: Sequence[tuple[float, float]] | None
    groups: Groups
    adapter: str
    evaluation: str
    reuse: Reuse = field(default_factory=Reuse)
    champion: str | None = None

    @property
    def names(self) -> dict[str, str]:
        """Names of the opponents that have another one for people than their variant's."""
        return {CHAMPION: f"live {self.champion}"} if self.champion else {}


def decide(evidence: Evidence, rules: Release) -> Decision:
    """Weigh the evidence. DataError when the variants were not scored on the same rows."""
    exact = by_variant(evidence.scores)
    if (evidence.champion is not None) != (CHAMPION in exact):
        raise DataError(
            f"live {evidence.champion} has no answers to the test rows"
            if evidence.champion
            else "there are answers of a live version, and none is named",
            "materialize eval_report again",
        )
    findings = _findings(exact, evidence, rules)
    outcome = _outcome(findings)
    figures = _figures(exact, findings, evidence, rules)
    checks = tuple(finding.check for finding in findings.values())
    summary = f"{outcome}: {_standings(exact, evidence)}; {_reasons(outcome, findings)}"
    return Decision(outcome, evidence.adapter, evidence.evaluation, checks, summary, figures)


def by_variant(scores: Sequence[Score]) -> dict[str, Right]:
    """Variant -> row id -> exactly right. DataError unless all variants, the tuned model among them, have the same rows
    once each: a paired test on other rows would be a comparison of nothing."""
    exact: dict[str, dict[str, bool]] = {}
    for score in scores:
        exact.setdefault(score.variant, {})[score.id] = score.exact
    ids = exact.get(TUNED, {}).keys()
    for name, rows in exact.items():
        twice = [row for row, count in Counter(s.id for s in scores if s.variant == name).items() if count > 1]
        odd = sorted(rows.keys() ^ ids) + twice
        if odd:
            raise DataError(
                f"{name} and {TUNED} were not scored once on the same test rows: {len(odd)} differ, such as {odd[0]}",
                "materialize eval_report again; baseline and tuned model have to answer the same split",
            )
    return dict(exact)


def best_prompted(exact: Mapping[str, Right]) -> str | None:
    """The prompted baseline with the most answers exactly right; of equals, the simplest."""
    names = [name for name in PROMPTED if name in exact]
    return max(names, key=lambda name: sum(exact[name].values()), default=None)


def _findings(exact: Mapping[str, Right], evidence: Evidence, rules: Release) -> dict[str, Finding]:
    """The questions in the order in which a person wants to read them."""
    tuned, groups = exact.get(TUNED, {}), evidence.groups
    best = best_prompted(exact)
    findings = {"rows": criteria.enough_rows(tuned.keys(), groups, rules)}
    for name in PROMPTED:
        if name in exact:
            findings[f"gain:{name}"] = criteria.beats(name, tuned, exact[name], groups, rules)
    if best is None:
        findings["gain"] = _nothing_to_beat()
    for name in (CHAMPION, CLASSICAL):
        if name in exact:
            shown = evidence.names.get(name, name)
            findings[f"no_worse:{name}"] = criteria.no_worse(shown, tuned, exact[name], groups, rules)
    if CHAMPION not in exact:
        findings["nothing_live"] = criteria.nothing_live()
    findings["general"] = criteria.keeps_general_ability(evidence.general, rules)
    mine = [score for score in evidence.scores if score.variant == TUNED]
    findings["format"] = criteria.answers_valid({score.id: score.valid for score in mine}, rules)
    if best is not None:
        slices = {score.id: score.slice for score in mine}
        harmed, undecided = slices_unharmed(best, tuned, exact[best], slices, groups, rules)
        findings |= {"slices": harmed, "slices_undecided": undecided}
    if CLASSICAL in exact:
        findings["worth"] = criteria.cheaper(CLASSICAL, tuned, exact[CLASSICAL], groups, rules)
    return findings | {"reuse": criteria.fresh_test_set(evidence.reuse, rules)}


def check_names(task: Task) -> tuple[str, ...]:
    """The names of the checks that every decision on this task has. That against the live version holds its number, so
    that it has no name of its own over several decisions."""
    variants = task.baseline.variants
    gains = [f"better than {name}" for name in PROMPTED if name in variants] or ["better than a prompt"]
    classical = [f"no worse than {CLASSICAL}", f"worth more than {CLASSICAL}"] if CLASSICAL in variants else []
    slices = ["no slice harmed", "slices without doubt"] if set(PROMPTED) & set(variants) else []
    always = ("enough test rows", "general ability kept", "answers keep the format", "test set not worn out")
    return (*always, *gains, *classical, *slices)


def _nothing_to_beat() -> Finding:
    expected = f"at least one of {', '.join(PROMPTED)} among `baseline.variants`"
    check = Check("better than a prompt", False, expected, "none was evaluated, so no gain can be shown")
    return Finding(check, "undecided")


def _outcome(findings: Mapping[str, Finding]) -> Literal["PROMOTE", "REJECT", "INCONCLUSIVE"]:
    if _shown_harm(findings):
        return "REJECT"
    return "PROMOTE" if all(finding.state == "holds" for finding in findings.values()) else "INCONCLUSIVE"


def _shown_harm(findings: Mapping[str, Finding]) -> list[Finding]:
    """Too few test rows decide nothing, neither way; what rests on other texts is not touched by that."""
    enough = findings["rows"].state == "holds"
    return [f for f in findings.values() if f.state == "harm" and (enough or f.unit != TEST_ROWS)]


def _standings(exact: Mapping[str, Right], evidence: Evidence) -> str:
    """Who has how many test rows exactly right: the tuned model and the opponents that matter."""
    best = best_prompted(exact)
    told = [f"the tuned model has {share(exact.get(TUNED, {}))} test rows exactly right"]
    if best:
        told.append(f"the best prompted baseline ({best}) {share(exact[best])}")
    told += [
        f"{'the ' if name == CLASSICAL else ''}{evidence.names.get(name, 'classical model')} has {share(exact[name])}"
        for name in (CHAMPION, CLASSICAL)
        if name in exact
    ]
    return ", ".join(told)


def _reasons(outcome: str, findings: Mapping[str, Finding]) -> str:
    if outcome == "PROMOTE":
        warned = [f.check.name for f in findings.values() if not f.check.passed]
        return f"with a warning: {', '.join(warned)}" if warned else "all checks hold"
    if outcome == "REJECT":
        return "failed: " + ", ".join(f'"{f.check.name}"' for f in _shown_harm(findings))
    if findings["rows"].state == "undecided":
        return advice(findings)
    undecided = [f.check.name for f in findings.values() if f.state == "undecided"]
    return f"not decided: {', '.join(undecided)}; {advice(findings)}"


def advice(findings: Mapping[str, Finding]) -> str:
    """What would turn undecided findings into decided ones."""
    rows = findings["rows"]
    if rows.state == "undecided":
        return f"it takes at least {rows.rows} test rows to decide, and there are {rows.figures['rows']}"
    undecided = [finding for finding in findings.values() if finding.state == "undecided"]
    needs = rows_needed(findings)
    if not needs:
        return "no number of rows would decide at these rates: a better model would"
    wanted = " and ".join(f"{count} {unit}" for unit, count in needs.items())
    part = "" if all(finding.rows is not None for finding in undecided) else " some of it"
    return f"about {wanted} in all would decide{part}, at the rates seen here"


def rows_needed(findings: Mapping[str, Finding]) -> dict[str, int]:
    """The most that any undecided finding needs, in all, by unit: {"test rows": 410}. Where there are too few rows to
    decide anything, the rates seen on them are no basis either, and the declared least number is given."""
    rows = findings["rows"]
    if rows.rows is not None:
        return {TEST_ROWS: rows.rows}
    needs: dict[str, int] = {}
    for finding in findings.values():
        if finding.state == "undecided" and finding.rows is not None:
            needs[finding.unit] = max(needs.get(finding.unit, 0), finding.rows)
    return needs


def _figures(
    exact: Mapping[str, Right], findings: Mapping[str, Finding], evidence: Evidence, rules: Release
) -> dict[str, Json]:
    tuned = exact.get(TUNED, {})
    best = best_prompted(exact)
    gain = findings[f"gain:{best}"].figures if best else {}
    losses = gain.get("losses", 0)
    seen = (
        smallest_gain(len(tuned), losses, rules.significance_level, rules.power)
        if best and isinstance(losses, int)
        else None
    )
    return {
        "rows": len(tuned),
        "variants": {name: {"rows": len(rows), "exact": sum(rows.values())} for name, rows in exact.items()},
        "best_prompted": best,
        "champion": evidence.champion,
        "gain": {"over": best, **gain} if best else None,
        "smallest_gain_shown": seen,
        "rows_needed": dict(rows_needed(findings)),
        "findings": {name: {"state": f.state, "rows_needed": f.rows, **f.figures} for name, f in findings.items()},
        "rules": rules.model_dump(mode="json"),
        "seed": criteria.SEED,
    }
