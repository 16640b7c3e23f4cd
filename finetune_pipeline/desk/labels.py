"""Texts of the pages for the pipeline's names: assets, states, reasons, variants, figures. Text only, no HTML.

label("clean_examples")      "Cleaned rows"
state("stale")               "Out of date"
spelled("pii-email")         "Personal data, email"; an unknown slug is spelled out: "too-long" -> "Too long"
"""

from __future__ import annotations

import re
from datetime import datetime

from finetune_pipeline.baseline.variants import VARIANTS, title

ASSETS = {
    "base_model": ("Base model", "The language model that is fine-tuned."),
    "raw_examples": ("Rows read", "Every row of every declared source, as read."),
    "clean_examples": ("Cleaned rows", "Fixed, checked and without duplicates; every change is in the ledger."),
    "suitability_report": (
        "Suitability report",
        "Whether prompting, retrieval or fine-tuning fits the task, and the cost of each.",
    ),
    "data_quality": ("Data quality gate", "Whether enough of the cleaned rows pass every rule."),
    "review_sample": ("Review sample", "A random sample of the cleaned rows, for review by experts."),
    "expert_review": ("Review gate", "Whether the experts find enough of the reviewed rows right."),
    "data_split": ("Split", "Training, validation and test rows, without overlap."),
    "baseline_report": (
        "Baseline report",
        "Results of prompting and of a classical model on the test rows, before training.",
    ),
    "training_plan": (
        "Plan of the training",
        "Memory, time and cost of the declared training, measured in a few steps, and where it fits.",
    ),
    "training_search": (
        "Search for settings",
        "Trainings with other settings, compared on the validation rows, where the task declares a search.",
    ),
    "adapter": ("Training", "The tuned weights, with checks before and during training."),
    "eval_report": (
        "Evaluation",
        "Prompts, classical model, live version and tuned model on the same test rows.",
    ),
    "release_decision": ("Release decision", "Promote, reject, or not enough evidence, with every reason."),
    "registered_model": ("Registered version", "The model with its card, license and checksums."),
    "deployed_endpoint": (
        "Deployed endpoint",
        "The version behind the endpoint; its answers equal the evaluated ones.",
    ),
    "traffic_report": ("Traffic report", "Prompts and answers of the live traffic: drift, validity, latency."),
}

STATES = {
    "fresh": "Done",
    "stale": "Out of date",
    "missing": "Not made",
    "failed": "Gate failed",
    "waiting": "Waiting for you",
    "others": "Waiting for others",
    "ready": "Ready for the next run",
}

OUTCOMES = {
    "PROMOTE": "Promoted: the tuned model is better, and nothing got worse",
    "REJECT": "Rejected: the tuned model is not used",
    "INCONCLUSIVE": "Inconclusive: not enough evidence to decide",
}

DECISIONS = {"approve": "approved", "reject": "rejected", "edit": "corrected"}

_SHORT = {
    "completion": "answer",
    "pii": "personal data,",
    "html": "HTML",
    "json": "JSON",
    "p50": "median",
    "p95": "95th percentile",
}


FAILED_GATES = {
    "suitability_report": (
        "The suitability gate failed",
        "Add examples, or declare a reason for continuing.",
    ),
    "data_quality": (
        "The quality gate failed",
        "Fix the rows in their source; the next run checks them again.",
    ),
    "expert_review": (
        "The review gate failed: too many reviewed rows are wrong",
        "Fix the rejected rows and similar rows in their source; the next round samples rows that nobody has reviewed "
        "yet.",
    ),
    "data_split": (
        "The split gate failed: test and training rows overlap",
        "Fix the groups of the rows named in the checks, and run again.",
    ),
    "training_plan": (
        "The training may not fit into memory or disk",
        "The training runs all the same; the plan shows what would fit.",
    ),
    "adapter": ("The training gate failed", "Read the failed checks; change the declaration to train again."),
    "release_decision": (
        "The tuned model was not promoted",
        "The served version is unchanged. Add data or change the declaration for a new candidate.",
    ),
    "deployed_endpoint": (
        "The new version was not deployed",
        "No traffic was moved. The checks below give the reason.",
    ),
    "traffic_report": ("The live traffic raised an alarm", "Read the traffic report for the figures that changed."),
}


RULE_VIOLATIONS = {
    "roles_in_order": "Messages in the wrong order",
    "prompt_present": "Prompt empty",
    "prompt_fits": "Prompt too long",
    "completion_present": "Answer empty",
    "completion_fits": "Answer too long",
    "completion_valid": "Answer not in the declared format",
    "no_personal_data": "Contains personal data",
    "no_secrets": "Contains a key or password",
    "no_html": "Contains HTML",
    "encoding_intact": "Broken characters",
    "no_refusal": "Answer is a model's refusal",
    "no_placeholder": "Placeholder in the answer",
    "no_echo": "Answer repeats the prompt",
    "not_cut_off": "Answer cut off",
    "prompt_unique": "Duplicate prompt",
}


def failed_gate(asset: str) -> tuple[str, str]:
    """Title and hint for a failed gate."""
    return FAILED_GATES.get(asset, (f"{label(asset)}: a check failed", "Read the report for the failed check."))


def bare(summary: str) -> str:
    """A summary without the outcome ("PROMOTE: ") at its beginning, which the page shows as a title."""
    head, colon, rest = summary.partition(": ")
    return nonbreaking(capitalized(rest if colon and head in OUTCOMES else summary))


def nonbreaking(text: str) -> str:
    """The text with a no-break space between a number and its percent sign."""
    return text.replace(" %", "\u00a0%")


def violation(rule: str) -> str:
    """What is wrong with a row that fails this rule of the quality gate; the names of the rules say what is right."""
    if rule.startswith("declared:"):
        return spelled(rule.rpartition(":")[2].removeprefix("expect_"))
    return RULE_VIOLATIONS.get(rule) or f"Fails “{spelled(rule).lower()}”"


def capitalized(text: str) -> str:
    """The text with an upper-case first letter; the rest is unchanged."""
    return text[:1].upper() + text[1:]


def label(asset: str) -> str:
    """The title of an asset."""
    return ASSETS[asset][0] if asset in ASSETS else spelled(asset)


def about(asset: str) -> str:
    """One sentence on an asset; "" if there is none."""
    return ASSETS[asset][1] if asset in ASSETS else ""


def state(name: str) -> str:
    """The text of a state. KeyError for an unknown one."""
    return STATES[name]


def check_title(name: str) -> str:
    """A check's name, with a variant's title: "better than few_shot" -> "Better than base model, fixed examples"."""
    head, _, last = name.rpartition(" ")
    text = f"{head} {title(last).lower()}" if head and last in VARIANTS else name
    return capitalized(nonbreaking(text))


def decision(name: str) -> str:
    """The text of a reviewer's decision. KeyError for an unknown one."""
    return DECISIONS[name]


def spelled(slug: str) -> str:
    """A slug as words: "near-duplicate" -> "Near duplicate", "pii-email" -> "Personal data, email"."""
    words = [_SHORT.get(word, word) for word in re.split(r"[-_ ]+", slug) if word]
    text = " ".join(words).rstrip(",")
    return text[:1].upper() + text[1:]


def number(value: float | None) -> str:
    """With thousands separators; a whole number without a decimal point, others with three digits; "–" for None."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.3g}"


def when(iso: str) -> str:
    """ "2026-01-05T10:00:00+00:00" -> "5 Jan 2026, 10:00 UTC"; other text is returned unchanged."""
    try:
        time = datetime.fromisoformat(iso)
    except ValueError:
        return iso
    zone = f" {time.tzname()}" if time.tzinfo else ""
    return f"{time.day} {time:%b %Y, %H:%M}{zone}"


def plural(count: int, singular: str) -> str:
    """ "1 row", "2 rows"."""
    return f"{count:,} {singular if count == 1 else singular + 's'}"
