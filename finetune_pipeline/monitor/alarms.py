"""Checks of the live traffic. A check that fails as an error is an alarm, which can start a retraining.

    evaluate_traffic(traffic, reference, task.monitor)       # Report(summary, checks, figures, drifts)

An alarm needs evidence: the share of broken answers raises one when its exact lower bound exceeds what is declared,
drift when it exceeds its own noise too (drift.py). Requests that failed, that the full endpoint refused, or
that the client abandoned are a warning only: a retraining does not fix the endpoint. With fewer than `min_requests`
nothing is checked, and no traffic at all is no alarm.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from finetune_pipeline.config import Monitor
from finetune_pipeline.monitor.drift import Drift, categories, lengths
from finetune_pipeline.monitor.figures import CONFIDENCE, TrafficFigures, quantile, traffic_figures
from finetune_pipeline.monitor.traffic_log import Traffic
from finetune_pipeline.records import Check
from finetune_pipeline.statistics.formatting import percent, percent_up
from finetune_pipeline.statistics.proportion import clopper_pearson

ENOUGH, FORMAT, LATENCY = "enough traffic", "answers keep the format", "answers come in time"
ANSWERED = "requests are answered"
DRIFT = "no drift: "
MAX_CHANGED = 2  # bins that a drift check names


@dataclass(frozen=True, slots=True)
class Reference:
    """The test rows as the tuned model answered them in the evaluation, one value per row: the traffic is compared with
    these. `kinds` counts the answers by label or slice."""

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
    figures: TrafficFigures
    drifts: tuple[Drift, ...] = ()

    @property
    def alarms(self) -> list[Check]:
        return _alarms(self.checks)


def evaluate_traffic(traffic: Traffic, reference: Reference, rules: Monitor) -> Report:
    """Check the traffic of one adapter."""
    period = f"the last {rules.window_days} days"
    if not traffic.requests:
        return Report(_no_traffic(traffic, period), (), traffic_figures(traffic, (), ()))
    drifts = _drifts(traffic, reference)
    checks = [_enough(traffic, rules)]
    if checks[0].passed:
        checks += [_format(traffic, rules), _latency(traffic, rules), _unanswered(traffic, rules)]
        checks += [_drift(drift, rules) for drift in drifts]
    figures = traffic_figures(traffic, drifts, [check.name for check in _alarms(checks)])
    return Report(_summary(checks, traffic, period), tuple(checks), figures, drifts)


def _alarms(checks: Sequence[Check]) -> list[Check]:
    return [check for check in checks if not check.passed and check.severity == "error"]


def _no_traffic(traffic: Traffic, period: str) -> str:
    refused = traffic.refused.total()
    others = traffic.versions.total() - refused
    text = f"no traffic in {period}: nothing to check"
    if others:
        text += f"; {others} requests went to other versions"
    return text + f"; {refused} requests were refused" if refused else text


def _drifts(traffic: Traffic, reference: Reference) -> tuple[Drift, ...]:
    """Lengths in characters where every line has its text, else in tokens (the log may be kept without texts)."""
    texts = len(traffic.prompt_chars) == traffic.requests
    unit = "characters" if texts else "tokens"
    test_prompts, live_prompts, test_answers, live_answers = (
        (reference.prompt_chars, traffic.prompt_chars, reference.completion_chars, traffic.completion_chars)
        if texts
        else (reference.prompt_tokens, traffic.prompt_tokens, reference.completion_tokens, traffic.completion_tokens)
    )
    drifts = [
        lengths(f"length of the prompts ({unit})", test_prompts, live_prompts),
        lengths(f"length of the answers ({unit})", test_answers, live_answers),
    ]
    if traffic.kinds and reference.kinds:
        drifts.append(categories("kinds of answers", reference.kinds, traffic.kinds))
    return tuple(drift for drift in drifts if drift.bins)


def _enough(traffic: Traffic, rules: Monitor) -> Check:
    enough = traffic.requests >= rules.min_requests
    observed = f"{traffic.requests} requests" + ("" if enough else ": too few to check anything else")
    return Check(ENOUGH, enough, f"at least {rules.min_requests} requests", observed, "warning", traffic.requests)


def _format(traffic: Traffic, rules: Monitor) -> Check:
    expected = f"at most {percent(rules.max_invalid)} of the answers break it"
    if not traffic.checked:
        return Check(FORMAT, True, expected, "the task declares no format")
    low, _ = clopper_pearson(traffic.broken, traffic.checked, 2 * CONFIDENCE - 1)
    share = traffic.broken / traffic.checked
    observed = f"{traffic.broken} of {traffic.checked} ({percent_up(share)}), "
    observed += f"{percent_up(low)} or more with {percent(CONFIDENCE)} confidence"
    if low <= rules.max_invalid < share:
        observed += "; more than declared, which may still be chance: compare with the next report"
    return Check(FORMAT, low <= rules.max_invalid, expected, observed, value=share)


def _latency(traffic: Traffic, rules: Monitor) -> Check:
    p95 = quantile(traffic.seconds, 0.95)
    observed = f"{p95:.2f} s" if p95 is not None else "nothing was answered"
    expected = f"19 of 20 answers within {rules.max_p95_seconds:g} s"
    return Check(LATENCY, p95 is None or p95 <= rules.max_p95_seconds, expected, observed, value=p95)


def _unanswered(traffic: Traffic, rules: Monitor) -> Check:
    causes = {
        "failed": traffic.statuses["error"],
        "were refused by the full endpoint": traffic.refused["busy"],
        "were abandoned by the client": traffic.statuses["abandoned"],
    }
    requests = traffic.requests + traffic.refused["busy"]
    low, _ = clopper_pearson(sum(causes.values()), requests, 2 * CONFIDENCE - 1)
    observed = f"{sum(causes.values())} of {requests} requests got no answer"
    if listed := ", ".join(f"{count} {cause}" for cause, count in causes.items() if count):
        observed += f": {listed}"
    expected = f"at most {percent(rules.max_invalid)} of the requests get no answer"
    share = sum(causes.values()) / requests
    return Check(ANSWERED, low <= rules.max_invalid, expected, observed, "warning", share)


def _drift(drift: Drift, rules: Monitor) -> Check:
    threshold = max(rules.max_psi, drift.noise)
    why = "declared" if threshold == rules.max_psi else f"what {drift.live_rows} requests show by chance"
    observed = f"{drift.psi:.2f} ({drift.test_rows} test rows, {drift.live_rows} live ones)"
    drifted = drift.drifted(rules.max_psi)
    if drifted:
        changed = sorted(drift.bins, key=lambda b: -abs(b.live - b.test))[:MAX_CHANGED]
        listed = ", ".join(f"{b.name} from {percent(b.test)} to {percent(b.live)}" for b in changed)
        observed += f"; most changed: {listed}"
    expected = f"stability index at most {threshold:.2f} ({why})"
    return Check(DRIFT + drift.name, not drifted, expected, observed, value=drift.psi)


def _summary(checks: Sequence[Check], traffic: Traffic, period: str) -> str:
    head = f"{traffic.requests} requests in {period}"
    if not checks[0].passed:
        return f"{head}: too few to check, so no alarm is raised"
    if alarms := _alarms(checks):
        return f"{head}; alarm: " + "; ".join(map(_problem, alarms))
    return f"{head}; no alarm"


def _problem(check: Check) -> str:
    """What is wrong, for a check whose name says what should be."""
    problems = {FORMAT: "answers break the format", LATENCY: "answers are slow"}
    if check.name.startswith(DRIFT):
        return f"drift in the {check.name.removeprefix(DRIFT)}, {check.observed.partition(' ')[0]}"
    return f"{problems[check.name]}, {check.observed.partition(',')[0]}"
