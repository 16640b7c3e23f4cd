"""Figures and alarms of the live traffic. Pure: counts in, a Report out.

    evaluate_traffic(traffic, reference, task.monitor) -> Report(checks, figures)

An alarm can start a retraining, so it needs evidence like every verdict here: the share of broken answers raises one
when its exact lower bound exceeds what is declared, drift when it exceeds its own noise too (drift.py). Requests that
failed, that were turned away because the endpoint was full, or whose client hung up only warn: a retraining would not
fix the endpoint. Below `min_requests` nothing is judged, and no traffic at all is
said, not alarmed about.

What it is not: a judgment of single answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from finetune_pipeline.config import Monitor
from finetune_pipeline.monitor.drift import Drift, categories, lengths
from finetune_pipeline.monitor.log import Traffic
from finetune_pipeline.records import Check, Json
from finetune_pipeline.release.statistics import clopper_pearson

CONFIDENCE = 0.95
DRIFT = "no drift: "


@dataclass(frozen=True, slots=True)
class Reference:
    """The test rows as the tuned model answered them in the evaluation: what the traffic should look like."""

    prompt_chars: Sequence[float]
    completion_chars: Sequence[float]
    prompt_tokens: Sequence[float]
    completion_tokens: Sequence[float]
    kinds: Counter[str]


@dataclass(frozen=True, slots=True)
class Report:
    """`checks` that fail as errors are alarms; `figures` go to report.json; `drifts` are drawn on the page."""

    summary: str
    checks: tuple[Check, ...]
    figures: dict[str, Json]
    drifts: tuple[Drift, ...] = ()

    @property
    def alarms(self) -> list[Check]:
        return [check for check in self.checks if not check.passed and check.severity == "error"]


def evaluate_traffic(traffic: Traffic, reference: Reference, rules: Monitor) -> Report:
    """Judge the traffic of one adapter."""
    figures = _figures(traffic)
    days = f"the last {rules.window_days} days"
    if not traffic.requests:
        figures |= {"drift": {}, "alarms": []}
        others = traffic.versions.total() - traffic.refused.total()
        other = f"; {others} requests went to other versions" if others else ""
        if refused := traffic.refused.total():
            other += f"; {refused} requests were refused"
        return Report(f"no traffic in {days}: nothing to judge{other}", (), figures)
    drifts = _drifts(traffic, reference)
    enough = traffic.requests >= rules.min_requests
    checks = [_enough(traffic, rules)]
    if enough:
        checks += [_format(traffic, rules), _latency(figures, rules), _failures(traffic, rules)]
        checks += [_drift(drift, rules) for drift in drifts]
    report = Report("", tuple(checks), figures, drifts)
    figures["drift"] = {d.name: {"psi": d.psi, "noise": d.noise, "bins": [asdict(b) for b in d.bins]} for d in drifts}
    figures["alarms"] = [check.name for check in report.alarms]
    return Report(_summary(report, traffic, days, enough), report.checks, figures, drifts)


def _figures(traffic: Traffic) -> dict[str, Json]:
    import numpy as np

    def at(share: float, seconds: Sequence[float] = traffic.seconds) -> float | None:
        return round(float(np.quantile(seconds, share)), 3) if len(seconds) else None

    share = traffic.broken / traffic.checked if traffic.checked else None
    return {
        "requests": traffic.requests,
        "first": traffic.first,
        "last": traffic.last,
        "checked": traffic.checked,
        "broken": traffic.broken,
        "invalid_share": share,
        "invalid_interval": list(clopper_pearson(traffic.broken, traffic.checked, CONFIDENCE))
        if traffic.checked
        else None,
        "p50_seconds": at(0.50),
        "p95_seconds": at(0.95),
        "fallbacks": traffic.statuses["fallback"],
        "rejected": traffic.statuses["rejected"],
        "errors": traffic.statuses["error"],
        "abandoned": traffic.statuses["abandoned"],
        "refused": dict(traffic.refused.most_common()),
        "queued_p50_seconds": at(0.50, traffic.queued),
        "queued_p95_seconds": at(0.95, traffic.queued),
        "prompt_tokens": int(sum(traffic.prompt_tokens)),
        "completion_tokens": int(sum(traffic.completion_tokens)),
        "versions": dict(traffic.versions.most_common()),
        "kinds": dict(traffic.kinds.most_common(50)),
        "days": {day: {"requests": n, "broken": k} for day, (n, k) in sorted(traffic.days.items())},
        "unreadable_lines": traffic.unreadable,
    }


def _drifts(traffic: Traffic, reference: Reference) -> tuple[Drift, ...]:
    """Lengths in characters where every line has its text, else in tokens (the log may be kept without texts)."""
    texts = len(traffic.prompt_chars) == traffic.requests
    unit = "characters" if texts else "tokens"
    live: Sequence[float] = traffic.prompt_chars if texts else traffic.prompt_tokens
    test = reference.prompt_chars if texts else reference.prompt_tokens
    found = [lengths(f"length of the {'questions' if texts else 'prompts'} ({unit})", test, live)]
    live = traffic.completion_chars if texts else traffic.completion_tokens
    test = reference.completion_chars if texts else reference.completion_tokens
    found.append(lengths(f"length of the answers ({unit})", test, live))
    if traffic.kinds and reference.kinds:
        found.append(categories("kinds of answers", reference.kinds, traffic.kinds))
    return tuple(drift for drift in found if drift.bins)


def _enough(traffic: Traffic, rules: Monitor) -> Check:
    enough = traffic.requests >= rules.min_requests
    observed = f"{traffic.requests} requests" + ("" if enough else ": too few to judge anything")
    return Check(
        "enough traffic", enough, f"at least {rules.min_requests} requests", observed, "warning", traffic.requests
    )


def _format(traffic: Traffic, rules: Monitor) -> Check:
    name, expected = "answers keep the format", f"at most {rules.max_invalid:.1%} of the answers break it"
    if not traffic.checked:
        return Check(name, True, expected, "the task declares no format to keep")
    low, _ = clopper_pearson(traffic.broken, traffic.checked, 2 * CONFIDENCE - 1)
    share = traffic.broken / traffic.checked
    observed = (
        f"{traffic.broken} of {traffic.checked} ({share:.1%}), {low:.1%} or more with {CONFIDENCE:.0%} confidence"
    )
    if low <= rules.max_invalid < share:
        observed += "; more than declared, which may still be chance: watch it"
    return Check(name, low <= rules.max_invalid, expected, observed, value=share)


def _latency(figures: dict[str, Json], rules: Monitor) -> Check:
    slow: Any = figures["p95_seconds"]
    observed = f"{slow:.2f} s" if slow is not None else "nothing was answered"
    expected = f"19 of 20 answers within {rules.max_p95_seconds:g} s"
    return Check("answers come in time", slow is None or slow <= rules.max_p95_seconds, expected, observed, value=slow)


def _failures(traffic: Traffic, rules: Monitor) -> Check:
    parts = {
        "failed": traffic.statuses["error"],
        "found the endpoint full": traffic.refused["busy"],
        "were given up by the client": traffic.statuses["abandoned"],
    }
    asked = traffic.requests + traffic.refused["busy"]
    low, _ = clopper_pearson(sum(parts.values()), asked, 2 * CONFIDENCE - 1)
    share = sum(parts.values()) / asked
    observed = f"{sum(parts.values())} of {asked} requests got no answer"
    if named := ", ".join(f"{count} {what}" for what, count in parts.items() if count):
        observed += f": {named}"
    expected = f"no more than {rules.max_invalid:.1%} of the requests fail"
    return Check("requests are answered", low <= rules.max_invalid, expected, observed, "warning", share)


def _drift(drift: Drift, rules: Monitor) -> Check:
    bar = max(rules.max_psi, drift.noise)
    why = "declared" if bar == rules.max_psi else f"what {drift.live_rows} requests show by chance"
    observed = f"{drift.psi:.2f} ({drift.test_rows} test rows, {drift.live_rows} live ones)"
    moved = sorted(drift.bins, key=lambda b: -abs(b.live - b.test))[:2]
    drifted = drift.drifted(rules.max_psi)
    if drifted:
        observed += "; most changed: " + ", ".join(f"{b.name} from {b.test:.0%} to {b.live:.0%}" for b in moved)
    return Check(
        DRIFT + drift.name, not drifted, f"stability index at most {bar:.2f} ({why})", observed, value=drift.psi
    )


def _summary(report: Report, traffic: Traffic, days: str, enough: bool) -> str:
    head = f"{traffic.requests} requests in {days}"
    if not enough:
        return f"{head}: too few to judge, so no alarm is raised"
    if report.alarms:
        return f"{head}; alarm: " + "; ".join(map(_alarm, report.alarms))
    return f"{head}; no alarm"


def _alarm(check: Check) -> str:
    """What is wrong, where the check's name says what should be."""
    words = {"answers keep the format": "answers break the format", "answers come in time": "answers are slow"}
    if check.name.startswith(DRIFT):
        return f"drift in the {check.name.removeprefix(DRIFT)}, {check.observed.partition(' ')[0]}"
    return f"{words[check.name]}, {check.observed.partition(',')[0]}"
