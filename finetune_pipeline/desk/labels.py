"""Plain English for what the pipeline calls by slugs: assets, states, reasons, variants, figures. Text only, no HTML.

label("clean_examples") -> "Cleaned rows"         reason("pii-email") -> "Pii email"
state("stale") -> "Out of date"                   slugs nobody listed are spelled out: "too-long" -> "Too long"
"""

from __future__ import annotations

import re
from datetime import datetime

ASSETS = {
    "base_model": ("Base model", "The language model that is going to be tuned."),
    "raw_examples": ("Rows read", "Every row of every declared source, as it was read."),
    "clean_examples": ("Cleaned rows", "Fixed, checked and without duplicates; every change is in the ledger."),
    "suitability_report": ("Is tuning worth it?", "Prompting, retrieval or fine-tuning, at what cost."),
    "data_quality": ("Data quality gate", "Are enough of the cleaned rows right in every respect?"),
    "review_sample": ("Sample for the experts", "A random part of the cleaned rows, for people to judge."),
    "expert_review": ("Review gate", "Do the experts find enough of the rows right?"),
    "data_split": ("Split", "Training, validation and test rows, without overlap."),
    "baseline_report": ("What a prompt alone reaches", "Measured on the test rows before anything is trained."),
    "adapter": ("Training", "The tuned weights; what is learned is checked before, the loss is watched during."),
    "eval_report": ("Evaluation", "Base, prompted and tuned model on the same test rows."),
    "release_decision": ("Decision", "Promote, reject, or not enough evidence, with every reason."),
    "registered_model": ("Registered version", "The model with its card, license and checksums."),
    "deployed_endpoint": ("In service", "The version behind the endpoint, after its answers were compared."),
    "traffic_report": ("Traffic", "What the live questions and answers look like."),
}

STATES = {
    "fresh": "Done",
    "stale": "Out of date",
    "missing": "Not made yet",
    "failed": "Gate failed",
    "waiting": "Waiting for you",
    "others": "Waiting for others",
    "ready": "Ready to go on",
}

STEPS = {
    "read": "Read",
    "clean": "Clean",
    "quality": "Quality",
    "review": "Review",
    "split": "Split",
    "train": "Train",
    "evaluate": "Evaluate",
    "decide": "Decide",
    "serve": "Serve",
    "watch": "Watch",
}

VARIANTS = {
    "zero_shot": "Base model, instruction only",
    "few_shot": "Base model, fixed examples in the prompt",
    "few_shot_retrieved": "Base model, similar examples in the prompt",
    "classical": "Classical model (no language model)",
    "champion": "Live version",
    "larger": "Larger model over an API",
    "tuned": "Tuned model",
}

OUTCOMES = {
    "PROMOTE": "Promote: the tuned model is better, and nothing got worse",
    "REJECT": "Reject: the tuned model must not be used",
    "INCONCLUSIVE": "Not enough evidence to decide",
}

_SHORT = {
    "completion": "answer",
    "pii": "personal data,",
    "html": "HTML",
    "json": "JSON",
    "id": "id",
    "ms": "ms",
    "p95": "95th percentile",
}


REFUSALS = {
    "suitability_report": (
        "This task is not ready to be tuned",
        "More examples are needed, or a declared reason for going on regardless.",
    ),
    "data_quality": (
        "The data did not pass the quality gate",
        "Fix the rows where they come from; the next run judges them again.",
    ),
    "expert_review": (
        "Too many reviewed rows were wrong",
        "Fix what was rejected where it comes from, and other rows of its kind: the next round takes rows that nobody "
        "has reviewed yet.",
    ),
    "data_split": (
        "Test and training rows overlap",
        "The rows named in the report belong together: fix their groups, and run again.",
    ),
    "adapter": ("Training did not go well", "The report says what was seen; another declaration trains anew."),
    "release_decision": (
        "The tuned model was not accepted",
        "What is served stays as it is. More data, or another declaration, makes a new candidate.",
    ),
    "deployed_endpoint": (
        "The new version is not in service",
        "The version before goes on answering. The report names the rows whose answers differ.",
    ),
    "traffic_report": ("The live traffic raised an alarm", "The report says what changed."),
}


BROKEN = {
    "roles_in_order": "Prompt and answer out of order",
    "prompt_present": "Prompt empty",
    "prompt_fits": "Prompt too long",
    "completion_present": "Answer empty",
    "completion_fits": "Answer too long",
    "completion_valid": "Answer not of the declared form",
    "no_personal_data": "Personal data left",
    "no_secrets": "Key or password left",
    "no_html": "HTML left",
    "encoding_intact": "Broken characters",
    "no_refusal": "Answer is a model's refusal",
    "no_placeholder": "Placeholder in the answer",
    "no_echo": "Answer repeats the prompt",
    "not_cut_off": "Answer cut off",
    "prompt_unique": "Prompt in several rows",
}


def refusal(asset: str) -> tuple[str, str]:
    """What it means for people that this gate said no: a title, and what to do."""
    return REFUSALS.get(asset, (f"{label(asset)}: a check failed", "The report says which."))


def bare(summary: str) -> str:
    """A decision's summary without the outcome in front, which stands beside it in words already."""
    head, colon, rest = summary.partition(": ")
    return together(rest[:1].upper() + rest[1:] if colon and head in OUTCOMES else summary)


def together(text: str) -> str:
    """A number and its per cent sign stay on one line."""
    return text.replace(" %", "\u00a0%")


def broken(rule: str) -> str:
    """What is wrong with a row that breaks this rule of the quality gate (whose names say what is right)."""
    if rule.startswith("declared:"):
        return spelled(rule.rpartition(":")[2].removeprefix("expect_"))
    return BROKEN.get(rule) or f"Breaks “{spelled(rule).lower()}”"


def first_up(text: str) -> str:
    return text[:1].upper() + text[1:]


def label(asset: str) -> str:
    return ASSETS[asset][0] if asset in ASSETS else spelled(asset)


def about(asset: str) -> str:
    return ASSETS[asset][1] if asset in ASSETS else ""


def state(name: str) -> str:
    return STATES[name]


def variant(name: str) -> str:
    return VARIANTS.get(name) or spelled(name)


def spelled(slug: str) -> str:
    """A slug as words: "near-duplicate" -> "Near duplicate", "pii-email" -> "Personal data, email"."""
    words = [_SHORT.get(word, word) for word in re.split(r"[-_ ]+", slug) if word]
    text = " ".join(words).rstrip(",")
    return text[:1].upper() + text[1:]


def number(value: float | None) -> str:
    """Thousands apart, whole numbers without a point, others to three digits."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.3g}"


def when(iso: str) -> str:
    """ "2026-01-05T10:00:00+00:00" -> "5 Jan 2026, 10:00 UTC"; text that is no time is given back as it is."""
    try:
        time = datetime.fromisoformat(iso)
    except ValueError:
        return iso
    zone = f" {time.tzname()}" if time.tzinfo else ""
    return f"{time.day} {time:%b %Y, %H:%M}{zone}"


def plural(count: int, one: str, many: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"
