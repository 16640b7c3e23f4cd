"""The rules of the quality gate: each is a condition on a single row. Pure, no I/O.

A rule is one respect in which a row has to be right. It names the columns (table.py) that it reads, and either the
expectation of Great Expectations that checks them, or a function of ours, of which expectations.py makes a custom
expectation. `row_ok` is whether a row passes every rule, which is what the 95 % are about: two rules of which
each holds for 95 % of the rows may leave only 90 % of them right.

To add a rule, write one function here and name it in RULES:

    def no_shouting(task: Task) -> Rule:
        return Rule("no_shouting", "the answer is not all capitals", ("completion",), each(lambda t: not t.isupper()))

A function that gives None is no rule for this task. What a valid completion, personal data and HTML are is defined in
`clean/`, once for both: cleaning should have left nothing to find, and the gate checks that.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from finetune_pipeline.clean import answers, pii
from finetune_pipeline.clean.duplicates import several_completions
from finetune_pipeline.clean.markup import without_markup
from finetune_pipeline.config import Task
from finetune_pipeline.quality import completions, encoding, secrets, table
from finetune_pipeline.records import Example, Json

ROW_OK = "row_ok"
NOT_NULL = "expect_column_values_to_not_be_null"
ColumnCheck = Callable[..., Sequence[bool]]


@dataclass(frozen=True, slots=True)
class Rule:
    """One respect in which a row has to be right.

    `description` is what holds for a right row, in English. `check` takes a list of values for each of the `columns`
    (one or two) and gives a bool for each row; `each` makes one of a function of one row. Where `built_in` names an
    expectation of Great Expectations, that one checks the table, with `kwargs`, and `check` does the same for a single
    row where Great Expectations is not loaded (a correction in the desk).
    """

    name: str
    description: str
    columns: tuple[str, ...]
    check: ColumnCheck
    built_in: str = ""
    kwargs: Mapping[str, Json] = field(default_factory=dict)


def each(holds: Callable[..., bool]) -> ColumnCheck:
    """A check of columns, made of a function of one row's values: called once for each different row, never with None
    (what is missing, `prompt_present` and `completion_present` find)."""

    def check(*values: Sequence[Any]) -> list[bool]:
        rows = list(zip(*values, strict=True))
        known = {row: None in row or holds(*row) for row in set(rows)}
        return [known[row] for row in rows]

    return check


def declared_name(number: int, type_: str) -> str:
    """The name of an expectation of `quality.expectations` in reports, by its place in that list."""
    return f"declared:{number}:{type_}"


def rules_of(task: Task) -> tuple[Rule, ...]:
    """The rules that the declaration asks for, in the order of the report."""
    return tuple(found for make in RULES if (found := make(task)) is not None)


def broken_by(row: Example, task: Task, rules: Sequence[Rule]) -> list[Rule]:
    """The rules that this row breaks by itself; those that compare it with others hold."""
    cells = table.columns([row], task, sorted({name for rule in rules for name in rule.columns}))
    return [rule for rule in rules if not rule.check(*(cells[name] for name in rule.columns))[0]]


def roles_in_order(task: Task) -> Rule:
    return Rule(
        "roles_in_order",
        "user and assistant take turns, and the answer comes last",
        ("roles",),
        each(lambda roles: re.search(_ROLES, roles) is not None),
        "expect_column_values_to_match_regex",
        {"regex": _ROLES},
    )


def prompt_present(task: Task) -> Rule:
    return _present("prompt", "there is a prompt")


def completion_present(task: Task) -> Rule:
    return _present("completion", "there is an answer")


def prompt_fits(task: Task) -> Rule:
    return _at_most("prompt_fits", "prompt", "the prompt", task.quality.max_prompt_chars)


def completion_fits(task: Task) -> Rule:
    """The bound holds for a rejected answer and for earlier ones of a conversation as well."""
    return _at_most("completion_fits", "longest_answer", "the answer", task.quality.max_completion_chars)


def completion_valid(task: Task) -> Rule | None:
    """JSON is checked more strictly than Great Expectations does it: a key given twice and NaN are errors."""
    answer = task.answer
    if answer.format == "label":
        labels = list(answer.labels)
        description = f"the answer is one of the {len(labels)} declared labels"
        kwargs: dict[str, Json] = {"value_set": labels}
        is_label = each(lambda text: text in answer.labels)
        return Rule(
            "completion_valid", description, ("completion",), is_label, "expect_column_values_to_be_in_set", kwargs
        )
    if answer.format == "json":
        description = "the answer is valid JSON of the declared schema"
        valid = each(lambda text: answers.problem(text, answer) is None)
        return Rule("completion_valid", description, ("completion",), valid)
    return None


def no_personal_data(task: Task) -> Rule | None:
    if task.clean.personal_data == "keep":
        return None
    description = "no e-mail or IP address, phone, card, account (IBAN) or social security number is left"
    return Rule("no_personal_data", description, ("turns",), each(_all(lambda text: not pii.mask(text)[1])))


def no_html(task: Task) -> Rule | None:
    """A task may be about HTML; so completions are never searched for it."""
    if not task.clean.html:
        return None
    description = "no HTML tag or entity is left in the prompt"
    return Rule("no_html", description, ("prompt",), each(lambda text: without_markup(text) == text))


def encoding_intact(task: Task) -> Rule:
    description = "no text holds traces of a broken encoding"
    return Rule("encoding_intact", description, ("turns",), each(_all(encoding.intact)))


def no_secrets(task: Task) -> Rule | None:
    description = "no key, token or password is left"
    found = Rule("no_secrets", description, ("turns",), each(_all(lambda text: not secrets.find(text))))
    return None if "secrets" in task.quality.allow else found


def no_refusal(task: Task) -> Rule | None:
    if task.answer.format == "label" or "refusals" in task.quality.allow:
        return None
    check = each(_all(lambda text: not completions.is_refusal(text)))
    return Rule("no_refusal", "the answer is no refusal of a language model", ("free_texts",), check)


def no_placeholder(task: Task) -> Rule | None:
    """What stands in the prompt as well is the task's own (a template to translate)."""
    if task.answer.format == "label" or "placeholders" in task.quality.allow:
        return None

    def filled(asked: str, texts: Sequence[str]) -> bool:
        return all(found in asked for text in texts for found in completions.placeholders(text))

    description = "the answer holds no placeholder such as [insert name]"
    return Rule("no_placeholder", description, ("asked", "free_texts"), each(filled))


def no_echo(task: Task) -> Rule | None:
    if task.answer.format != "text" or "echo" in task.quality.allow:
        return None
    check = each(lambda prompt, completion: not completions.is_echo(prompt, completion))
    return Rule("no_echo", "the answer does not repeat the whole prompt", ("prompt", "completion"), check)


def not_cut_off(task: Task) -> Rule | None:
    if task.answer.format != "text" or "cut_off" in task.quality.allow:
        return None

    def check(texts: Sequence[str | None]) -> list[bool]:
        return [not cut for cut in completions.cut_off([text or "" for text in texts])]

    return Rule("not_cut_off", "the answer does not end within a sentence", ("completion",), check)


def prompt_unique(task: Task) -> Rule:
    both = " with the same answer" if several_completions(task.clean, task.answer) else ""

    def check(values: Sequence[str]) -> list[bool]:
        times = Counter(values)
        return [times[value] == 1 for value in values]

    description = f"the prompt is in no other row{both}"
    return Rule("prompt_unique", description, ("conversation",), check, "expect_column_values_to_be_unique")


RULES: tuple[Callable[[Task], Rule | None], ...] = (
    roles_in_order,
    prompt_present,
    prompt_fits,
    completion_present,
    completion_fits,
    completion_valid,
    no_personal_data,
    no_secrets,
    no_html,
    encoding_intact,
    no_refusal,
    no_placeholder,
    no_echo,
    not_cut_off,
    prompt_unique,
)

_ROLES = "^s?(?:ua)+$"


def _present(column: str, description: str) -> Rule:
    def check(values: Sequence[Any]) -> list[bool]:
        return [value is not None for value in values]

    return Rule(f"{column}_present", description, (column,), check, NOT_NULL)


def _at_most(name: str, column: str, what: str, most: int) -> Rule:
    check, built_in = each(lambda text: len(text) <= most), "expect_column_value_lengths_to_be_between"
    description = f"{what} has at most {most:,} characters"
    return Rule(name, description, (column,), check, built_in, {"max_value": most})


def _all(holds: Callable[[str], bool]) -> Callable[[Sequence[str]], bool]:
    """Whether `holds` is true of every text; the result is kept for the next rows with the same text."""
    known = lru_cache(20_000)(holds)
    return lambda texts: all(known(text) for text in texts)
