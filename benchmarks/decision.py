"""Error rate and power of the release decision: how often it promotes a model that is no better, and one that is.

    python benchmarks/decision.py [--json] [--sets 2000]

Data: simulated test sets. Each row has a difficulty that all models share; `correlation` is its weight (0: models err
independently, 0.9: they err on the same rows). Peer: a bare comparison of means, "promote when the tuned model has more
rows right than the best baseline", on the same sets. Where rows come in groups (several messages of one customer) the
second peer is McNemar's test on rows, as if they were independent.

The first three tables use the rules for exact match alone, which are the part that could promote by chance, vectorized
from the same functions that `release/decide.py` calls; a sample of the sets is also decided by `decide` itself, and
both have to agree. A promotion is an error when the candidate is truly no better than the best prompt (first table), or
truly worse than the classical model or the live version by the margin (third table). The last table is the whole
decision, with all opponents, general ability, format and slices.

Longer than 250 lines because every table has its simulation and its print beside each other in one script.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from machine import machine
from numpy.typing import NDArray
from scipy.stats import beta, norm

from finetune_pipeline.baseline.prompts import PROMPTED
from finetune_pipeline.baseline.variants import CHAMPION, CLASSICAL, TUNED
from finetune_pipeline.config import Release
from finetune_pipeline.records import Score
from finetune_pipeline.release import paired_tests
from finetune_pipeline.release.decide import Evidence, decide
from finetune_pipeline.release.relative_change import relative_rise

RULES = Release()
SEED = 20260105
THROUGH_DECIDE = 2  # sets of each line; more would only take time
Bits = NDArray[np.bool_]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object of figures on the last line")
    parser.add_argument("--sets", type=int, default=2000, help="simulated test sets for each line")
    options = parser.parse_args()
    start = time.perf_counter()
    figures = {
        "machine": machine(),
        "sets": options.sets,
        "significance_level": RULES.significance_level,
        "no_difference": no_difference(options.sets),
        "power": powers(options.sets),
        "opponents": opponents(options.sets),
        "groups": groups(max(100, options.sets // 4)),
        "general": general(max(50, options.sets // 10)),
        "whole_decision": whole_decision(max(20, options.sets // 50)),
    }
    figures["seconds"] = round(time.perf_counter() - start, 1)
    show(figures)
    if options.json:
        print(json.dumps(figures))


# simulated test sets ----------------------------------------------------------------------------------------


def simulated_outcomes(
    random: np.random.Generator, sets: int, rows: int, rates: Sequence[float], correlation: float
) -> Bits:
    """Which rows each model has right: [models, sets, rows]. `rates` are the models' true shares, 0 to 1."""
    shared = random.standard_normal((sets, rows))
    own = random.standard_normal((len(rates), sets, rows))
    level = math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * own
    right: Bits = level < norm.ppf(np.asarray(rates))[:, None, None]
    return right


def superiority_rule(right: Bits) -> tuple[Bits, Bits, Bits]:
    """For each set: whether our rule promotes, whether it rejects, and whether the bare comparison promotes. right[0]
    is the tuned model."""
    tuned, baselines = right[0], right[1:]
    rows = tuned.shape[-1]
    wins = (tuned & ~baselines).sum(-1)
    losses = (~tuned & baselines).sum(-1)
    z = paired_tests.score_z(wins, losses, rows, RULES.min_gain)
    p = np.maximum(paired_tests.mcnemar(wins, losses), norm.sf(z))
    promote: Bits = (p <= RULES.significance_level).all(0)
    reject: Bits = (z <= -norm.isf(RULES.significance_level)).any(0)  # the upper bound of a gain is not above 0
    bare: Bits = tuned.sum(-1) > baselines.sum(-1).max(0)
    return promote, reject, bare


def non_inferiority_rule(right: Bits) -> Bits:
    """For each set: whether the tuned model, right[0], is shown to be no worse than all others."""
    tuned, others = right[0], right[1:]
    wins, losses = (tuned & ~others).sum(-1), (~tuned & others).sum(-1)
    rows, margin = tuned.shape[-1], RULES.non_inferiority_margin
    p = norm.sf(paired_tests.score_z(wins, losses, rows, -margin))
    p = np.where(wins == 0, np.maximum(p, beta.sf(margin, losses + 1, np.maximum(rows - losses, 1))), p)
    shown_worse = paired_tests.score_z(wins, losses, rows, 0.0) < -norm.isf(RULES.significance_level)
    passed: Bits = ((p <= RULES.significance_level) & ~shown_worse).all(0)
    return passed


def opponents(sets: int) -> list[dict[str, Any]]:
    """The tuned model beats the prompt by far (80 % against 30 %); the other opponents are better by `behind`. At the
    margin every promotion is an error, also where both are."""
    random, lines, margin = np.random.default_rng(SEED + 5), [], RULES.non_inferiority_margin
    for rows in (100, 200, 400):
        for correlation in (0.5, 0.9):
            for behind in ((margin, margin), (margin, -0.10), (-0.10, margin), (0.0, 0.0), (-0.03, -0.10)):
                right = simulated_outcomes(
                    random, sets, rows, [0.8, 0.8 + behind[0], 0.8 + behind[1], 0.3], correlation
                )
                promote = superiority_rule(right[[0, 3]])[0] & non_inferiority_rule(right[:3])
                assert_same_as_decide(right[[0, 3]], promote, right[1:3])
                line = {"rows": rows, "correlation": correlation, "live_ahead": behind[0], "classical_ahead": behind[1]}
                wrong = max(behind) >= margin
                lines.append({**line, "error": wrong, "promoted": float(promote.mean())})
    return lines


def no_difference(sets: int) -> list[dict[str, Any]]:
    """The tuned model is exactly as good as the best baseline: every promotion is an error."""
    random, lines = np.random.default_rng(SEED), []
    ladders = {"1": (0.0,), "3 equal": (0.0, 0.0, 0.0), "3, 5 points apart": (0.0, -0.05, -0.10)}
    for rows in (100, 300):
        for rate in (0.15, 0.50, 0.85):
            for correlation in (0.0, 0.5, 0.9):
                for name, steps in ladders.items():
                    rates = [rate, *(rate + step for step in steps)]
                    right = simulated_outcomes(random, sets, rows, rates, correlation)
                    promote, _, bare = superiority_rule(right)
                    assert_same_as_decide(right, promote)
                    line = {"rows": rows, "rate": rate, "correlation": correlation, "baselines": name}
                    lines.append({**line, "ours": float(promote.mean()), "bare": float(bare.mean())})
    return lines


def powers(sets: int) -> list[dict[str, Any]]:
    """The tuned model is truly better by `gain` than the best of three equal baselines at 50 %."""
    random, lines = np.random.default_rng(SEED + 1), []
    for rows in (100, 300, 1000):
        for gain in (0.05, 0.10, 0.20):
            promote, reject, bare = superiority_rule(
                simulated_outcomes(random, sets, rows, [0.5 + gain, 0.5, 0.5, 0.5], 0.5)
            )
            line = {"rows": rows, "gain": gain, "ours": float(promote.mean()), "rejected": float(reject.mean())}
            lines.append({**line, "bare": float(bare.mean())})
    return lines


def groups(sets: int, sizes: Sequence[int] = (1, 3, 6)) -> list[dict[str, Any]]:
    """Rows in groups of `size`, whose rows each model has right or wrong together; no true difference."""
    random, lines = np.random.default_rng(SEED + 2), []
    for size in sizes:
        count = 300 // size
        names = {f"{g}-{i}": str(g) for g in range(count) for i in range(size)}
        wrong = {"ours": 0, "rows_as_if_independent": 0}
        for _ in range(sets):
            level = random.standard_normal((2, count, 1)) + random.standard_normal((2, count, size))
            first, second = (dict(zip(names, map(bool, model.ravel() < 0), strict=True)) for model in level)
            pair = paired_tests.paired(first, second, names)
            wrong["ours"] += paired_tests.p_value(pair) <= RULES.significance_level
            wrong["rows_as_if_independent"] += bool(
                paired_tests.mcnemar(pair.wins, pair.losses) <= RULES.significance_level
            )
        lines.append({"rows": count * size, "group": size, **{name: n / sets for name, n in wrong.items()}})
    return lines


def general(sets: int) -> list[dict[str, Any]]:
    """The loss on general texts is truly `rise` higher, the margin 10 %: how often does it pass?"""
    random, lines = np.random.default_rng(SEED + 3), []
    for texts in (20, 60):
        for rise in (0.10, 0.05, 0.0):
            passed = 0
            for _ in range(sets):
                base = random.gamma(9, 0.35, texts)
                tuned = base * (1 + rise + 0.10 * random.standard_normal(texts))
                bound = relative_rise(list(base), list(tuned), RULES.significance_level, SEED).high
                passed += bound <= RULES.general_margin
            lines.append({"texts": texts, "rise": rise, "passed": passed / sets})
    return lines


# the whole decision -----------------------------------------------------------------------------------------


def scores(
    right: Bits, valid: float, random: np.random.Generator, names: Sequence[str] = (TUNED, *PROMPTED)
) -> list[Score]:
    """Scores of `right` [models, rows] as the evaluation writes them, in ten slices."""
    simulated = []
    for name, rows in zip(names, right, strict=False):
        simulated += [
            Score(f"r{i}", name, bool(bit), bool(random.random() < valid), {}, f"slice {i % 10}")
            for i, bit in enumerate(rows)
        ]
    return simulated


def assert_same_as_decide(right: Bits, promote: Bits, others: Bits | None = None) -> None:
    """The vectorized rules decide as `decide` does. `others`: the live version and the classical model."""
    none = np.random.default_rng(0)
    for index in range(THROUGH_DECIDE):
        simulated = scores(right[:, index], 1.1, none)
        if others is not None:
            simulated += scores(others[:, index], 1.1, none, (CHAMPION, CLASSICAL))
        live = None if others is None else "version 1"
        findings: Any = decide(Evidence(simulated, None, {}, "a", "e", champion=live), RULES).figures["findings"]
        held = all(f["state"] == "holds" for name, f in findings.items() if name.startswith(("gain:", "no_worse:")))
        assert held == bool(promote[index]), "the simulated rule differs from decide()"


def whole_decision(sets: int) -> list[dict[str, Any]]:
    """300 rows in ten slices, three prompts and a classical model at 50 %, a live version that is better by
    `live_ahead`, 60 general texts, 99 % of the answers valid. Errors: no gain, a loss of the margin, general ability
    lost."""
    random, lines = np.random.default_rng(SEED + 4), []
    margin = RULES.non_inferiority_margin
    cases = ((0.0, 0.0, -0.05), (0.10, 0.0, -0.05), (0.10, 0.0, margin), (0.10, 0.10, -0.05), (0.20, 0.0, 0.0))
    for gain, rise, ahead in cases:
        outcomes = {"PROMOTE": 0, "REJECT": 0, "INCONCLUSIVE": 0}
        right = simulated_outcomes(random, sets, 300, [0.5 + gain, 0.5, 0.5, 0.5, 0.5 + gain + ahead, 0.5], 0.5)
        for index in range(sets):
            base = random.gamma(9, 0.35, 60)
            tuned = base * (1 + rise + 0.10 * random.standard_normal(60))
            pairs = list(zip(map(float, base), map(float, tuned), strict=True))
            simulated = scores(right[:, index], 0.99, random, (TUNED, *PROMPTED, CHAMPION, CLASSICAL))
            outcomes[decide(Evidence(simulated, pairs, {}, "a", "e", champion="version 1"), RULES).outcome] += 1
        line = {"gain": gain, "rise": rise, "live_ahead": ahead, "error": gain == 0 or rise >= 0.1 or ahead >= margin}
        lines.append({**line, **{name: count / sets for name, count in outcomes.items()}})
    return lines


def show(figures: dict[str, Any]) -> None:
    lines, sets, level = figures["no_difference"], figures["sets"], RULES.significance_level
    error = math.sqrt(level * (1 - level) / sets)
    print(f"{figures['machine']}; {sets} simulated test sets a line; {figures['seconds']} s\n")
    print(f"Promoted although no better (aim: at most {figures['significance_level']:.0%}; standard error {error:.1%})")
    print(f"{'rows':>6}{'true share':>12}{'correlation':>13}  {'baselines':<20}{'ours':>7}{'bare means':>12}")
    for x in lines:
        print(
            f"{x['rows']:>6}{x['rate']:>12.0%}{x['correlation']:>13}  {x['baselines']:<20}{x['ours']:>7.1%}"
            f"{x['bare']:>12.1%}"
        )
    print(
        f"worst of {len(lines)} lines: {max(x['ours'] for x in lines):.1%} against {max(x['bare'] for x in lines):.1%}"
    )
    print("\nPromoted when truly better than three equal baselines at 50 %")
    print(f"{'rows':>6}{'gain':>8}{'ours':>8}{'rejected':>10}{'bare means':>12}")
    for x in figures["power"]:
        print(f"{x['rows']:>6}{x['gain']:>8.0%}{x['ours']:>8.1%}{x['rejected']:>10.1%}{x['bare']:>12.1%}")
    print("\nPromoted against opponents that are ahead by so much (prompt far behind; at the margin it is an error)")
    print(f"{'rows':>6}{'correlation':>13}{'live ahead':>12}{'classical ahead':>17}{'promoted':>10}")
    for x in figures["opponents"]:
        print(
            f"{x['rows']:>6}{x['correlation']:>13}{x['live_ahead']:>+12.0%}{x['classical_ahead']:>+17.0%}"
            f"{x['promoted']:>10.1%}{'  error' if x['error'] else ''}"
        )
    print("\nPromoted although no better, 300 rows in groups that are right or wrong together")
    print(f"{'group of':>9}{'ours':>8}{'rows as if independent':>24}")
    for x in figures["groups"]:
        print(f"{x['group']:>9}{x['ours']:>8.1%}{x['rows_as_if_independent']:>24.1%}")
    print("\nGeneral ability kept (margin 10 %: at a true rise of 10 % every pass is an error)")
    print(f"{'texts':>6}{'true rise':>11}{'passed':>9}")
    for x in figures["general"]:
        print(f"{x['texts']:>6}{x['rise']:>11.0%}{x['passed']:>9.1%}")
    print("\nThe whole decision, 300 rows in ten slices, 60 general texts")
    print(f"{'gain':>6}{'true rise':>11}{'live ahead':>12}{'PROMOTE':>9}{'REJECT':>9}{'INCONCLUSIVE':>14}")
    for x in figures["whole_decision"]:
        print(
            f"{x['gain']:>6.0%}{x['rise']:>11.0%}{x['live_ahead']:>+12.0%}{x['PROMOTE']:>9.1%}{x['REJECT']:>9.1%}"
            f"{x['INCONCLUSIVE']:>14.1%}{'  error' if x['error'] else ''}"
        )


if __name__ == "__main__":
    main()
