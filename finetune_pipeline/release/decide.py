"""The decision on a candidate: PROMOTE, REJECT or INCONCLUSIVE, with every reason.

    decide(Evidence(scores, general, groups, adapter="9be0…", evaluation="51aa…"), task.release)       # Decision(...)

    PROMOTE        every criterion of criteria.py holds, by the interval and not by the mean alone
    REJECT         a criterion is shown to be violated: no gain, worse than the classical model or the live version,
                   general ability lost, a slice harmed, the format broken
    INCONCLUSIVE   neither, or fewer test rows than the declared power needs (harm on general texts still means REJECT);
                   it says how many rows are needed

The opponents, on the same test rows: the tuned model has to be *superior* to each prompted baseline (without tuning,
the team would prompt), and *not inferior* by the declared margin to the classical model and the live version (they are
in use already, and a candidate may be worth having for other reasons than being better).

Each of these is tested at the full `significance_level`. No correction is needed: a model that is truly no better than
some prompt, or truly worse by the margin than another opponent, passes that one test with a probability of at most
`significance_level`, so all of them together pass with no more (the intersection-union test: Berger, "Multiparameter
hypothesis testing and acceptance sampling", Technometrics 24, 1982, 295-300). To compare with the best of several,
selected on the same rows, would be to compare with the maximum of noisy figures. `benchmarks/decision.py` simulates it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from finetune_pipeline.baseline import classical
from finetune_pipeline.baseline.figures import best_prompted as most_exact
from finetune_pipeline.baseline.prompts import PROMPTED
from finetune_pipeline.baseline.variants import CHAMPION, CLASSICAL, TUNED
from finetune_pipeline.config import Release, Task
from finetune_pipeline.errors import DataError
from finetune_pipeline.records import Check, Decision, Outcome, Score
from finetune_pipeline.release import criteria
from finetune_pipeline.release.figures import DecisionFigures, Finding, Gain, Groups, Outcomes
from finetune_pipeline.release.holdout_reuse import HoldoutReuse
from finetune_pipeline.release.power import smallest_gain
from finetune_pipeline.release.slices import slices_unharmed
from finetune_pipeline.release.summary import outcome_of, rows_needed, summary

EVALUATE_AGAIN = "materialize eval_report again"


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that a decision is based on. `scores`: one for each variant and test row. `general`: pairs of the base's and
    the tuned model's loss on general texts (nats per token); None where that was not measured. `groups`: test row id ->
    the group it shares with others. `adapter` and `evaluation` are content hashes. `champion`: the live version's name
    ("version 3"), None when nothing is live; its scores are those of the variant `champion`. `unmeasurable`: why
    general ability cannot be measured."""

    scores: Sequence[Score]
    general: Sequence[tuple[float, float]] | None
    groups: Groups
    adapter: str
    evaluation: str
    reuse: HoldoutReuse = field(default_factory=HoldoutReuse)
    champion: str | None = None
    unmeasurable: str | None = None


def decide(evidence: Evidence, rules: Release) -> Decision:
    """The decision. DataError when the variants were not scored on the same rows."""
    exact = by_variant(evidence.scores)
    if (evidence.champion is not None) != (CHAMPION in exact):
        raise DataError(
            f"live {evidence.champion} has no answers to the test rows"
            if evidence.champion
            else "there are answers of a live version, and none is named",
            EVALUATE_AGAIN,
        )
    best = best_prompted(exact)
    findings = _findings(exact, best, evidence, rules)
    outcome: Outcome = outcome_of(findings)
    return Decision(
        outcome,
        evidence.adapter,
        evidence.evaluation,
        tuple(finding.check for finding in findings.values()),
        summary(outcome, exact, best, evidence.champion, findings),
        _figures(exact, best, findings, evidence, rules),
    )


def check_names(task: Task) -> tuple[str, ...]:
    """The names of the checks that every decision on this task has. The one against the live version is left out: its
    name holds the version's number."""
    variants = task.baseline.variants
    gains = [f"better than {name}" for name in PROMPTED if name in variants] or ["better than a prompt"]
    compared = CLASSICAL in variants and classical.applies(task.answer)
    no_worse = [f"no worse than {CLASSICAL}", f"worth more than {CLASSICAL}"] if compared else []
    slices = ["no slice harmed", "slices without doubt"] if set(PROMPTED) & set(variants) else []
    always = ("enough test rows", "general ability kept", "answers keep the format", "holdout reuse")
    return (*always, *gains, *no_worse, *slices)


def by_variant(scores: Sequence[Score]) -> dict[str, Outcomes]:
    """Variant -> row id -> exactly right. DataError unless all variants, the tuned model among them, have one score for
    each of the same rows: a paired test needs pairs."""
    exact: dict[str, dict[str, bool]] = {}
    for score in scores:
        exact.setdefault(score.variant, {})[score.id] = score.exact
    ids = exact.get(TUNED, {}).keys()
    for name, rows in exact.items():
        twice = [row for row, count in Counter(s.id for s in scores if s.variant == name).items() if count > 1]
        differing = sorted(rows.keys() ^ ids) + twice
        if differing:
            raise DataError(
                f"{name} and {TUNED} were not scored once on the same test rows: {len(differing)} differ, "
                f"such as {differing[0]}",
                f"{EVALUATE_AGAIN}; baselines and tuned model have to answer the same split",
            )
    return dict(exact)


def best_prompted(exact: Mapping[str, Outcomes]) -> str | None:
    """The prompted baseline with the most answers exactly right; None where there is none."""
    return most_exact({name: sum(rows.values()) / max(1, len(rows)) for name, rows in exact.items()})


def _findings(
    exact: Mapping[str, Outcomes], best: str | None, evidence: Evidence, rules: Release
) -> dict[str, Finding]:
    """The findings in the order of the report. Their names are part of decision.json (figures.py)."""
    tuned, groups = exact.get(TUNED, {}), evidence.groups
    findings = {"rows": criteria.enough_rows(tuned.keys(), groups, rules)}
    for name in PROMPTED:
        if name in exact:
            findings[f"gain:{name}"] = criteria.superiority(name, tuned, exact[name], groups, rules)
    if best is None:
        findings["gain"] = _no_prompted_baseline()
    for name, title in ((CHAMPION, f"live {evidence.champion}"), (CLASSICAL, CLASSICAL)):
        if name in exact:
            findings[f"no_worse:{name}"] = criteria.non_inferiority(title, tuned, exact[name], groups, rules)
    if CHAMPION not in exact:
        findings["nothing_live"] = criteria.no_live_version()
    findings["general"] = criteria.general_ability(evidence.general, rules, evidence.unmeasurable)
    tuned_scores = [score for score in evidence.scores if score.variant == TUNED]
    findings["format"] = criteria.format_kept({score.id: score.valid for score in tuned_scores}, rules)
    if best is not None:
        slices = {score.id: score.slice for score in tuned_scores}
        harmed, undecided = slices_unharmed(best, tuned, exact[best], slices, groups, rules)
        findings |= {"slices": harmed, "slices_undecided": undecided}
    if CLASSICAL in exact:
        findings["worth"] = criteria.worth_its_cost(CLASSICAL, tuned, exact[CLASSICAL], groups, rules)
    return findings | {"reuse": criteria.limited_reuse(evidence.reuse, rules)}


def _no_prompted_baseline() -> Finding:
    expected = f"at least one of {', '.join(PROMPTED)} among `baseline.variants`"
    check = Check(
        "better than a prompt", False, expected, "no prompted baseline was evaluated, so no gain can be shown"
    )
    return Finding(check, "undecided")


def _figures(
    exact: Mapping[str, Outcomes],
    best: str | None,
    findings: Mapping[str, Finding],
    evidence: Evidence,
    rules: Release,
) -> DecisionFigures:
    tuned = exact.get(TUNED, {})
    gain: Gain | None = None
    if best:
        gain = cast(Gain, {"over": best, **findings[f"gain:{best}"].figures})
    smallest = smallest_gain(len(tuned), gain["losses"], rules.significance_level, rules.power) if gain else None
    return {
        "rows": len(tuned),
        "variants": {name: {"rows": len(rows), "exact": sum(rows.values())} for name, rows in exact.items()},
        "best_prompted": best,
        "champion": evidence.champion,
        "gain": gain,
        "smallest_gain_shown": smallest,
        "rows_needed": rows_needed(findings),
        "findings": {name: finding.to_json() for name, finding in findings.items()},
        "rules": rules.model_dump(mode="json"),
        "seed": criteria.SEED,
    }
