"""The space of a search: which values a trial gets from Optuna, and the settings of a training with these values. Pure.

    values = suggest(trial, parameters)         # {"learning_rate": 0.0021, "lora.r": 8, "without_sources": ["web"]}
    rules = applied(task.train, values)         # Train(learning_rate=0.0021, lora=Lora(r=8, alpha=16), …)

Values are those of JSON, by the names of the settings in task.yaml.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, TypeVar

from finetune_pipeline.config import Parameters, Range, Train
from finetune_pipeline.config.search import DATA, INTEGERS
from finetune_pipeline.config.section import Section

Values = dict[str, Any]
S = TypeVar("S", bound=Section)


def suggest(trial: Any, parameters: Parameters) -> Values:
    """The values of an optuna.trial.Trial."""
    return {name: _suggested(trial, name, tried) for name, tried in parameters.declared().items()}


def _suggested(trial: Any, name: str, tried: Range | tuple[Any, ...]) -> Any:
    if not isinstance(tried, Range):
        return decoded(name, trial.suggest_categorical(name, [encoded(name, value) for value in tried]))
    if name in INTEGERS:
        return trial.suggest_int(name, int(tried.low), int(tried.high), log=is_log(name, tried))
    return trial.suggest_float(name, tried.low, tried.high, log=is_log(name, tried))


def is_log(name: str, tried: Range) -> bool:
    return name == "learning_rate" if tried.log is None else tried.log


def encoded(name: str, value: Any) -> Any:
    """A value as Optuna keeps it: a number, a text or None."""
    if name == "without_sources":
        return "\n".join(value)
    return int(value) if name in INTEGERS and value is not None else value


def decoded(name: str, value: Any) -> Any:
    """The inverse of `encoded`, as a value of JSON."""
    return [part for part in value.split("\n") if part] if name == "without_sources" else value


def as_declared(rules: Train, parameters: Parameters) -> Values:
    """The declared settings, as far as the space has them: the first trial, with which the others are compared."""
    every = {**_flat(rules), "row_share": 1.0, "without_sources": []}
    tried = parameters.declared()
    return {name: every[name] for name in tried if _within(name, every[name], tried[name])}


def _flat(rules: Train) -> Values:
    plain = rules.model_dump(mode="json")
    return {**plain, "lora.r": plain["lora"]["r"], "keep_general.weight": plain["keep_general"]["weight"]}


def _within(name: str, value: Any, tried: Range | tuple[Any, ...]) -> bool:
    if isinstance(tried, Range):
        return value is not None and tried.low <= value <= tried.high
    return encoded(name, value) in [encoded(name, each) for each in tried]


def combinations(parameters: Parameters, most: int) -> list[Values]:
    """All combinations where every parameter is a list and there are no more than `most`; else none."""
    tried = parameters.declared()
    lists: list[Sequence[Any]] = [values for values in tried.values() if not isinstance(values, Range)]
    if len(lists) < len(tried) or math.prod(map(len, lists)) > most:
        return []
    encoded_lists = [[encoded(name, value) for value in values] for name, values in zip(tried, lists, strict=True)]
    found = [dict(zip(tried, values, strict=True)) for values in product(*encoded_lists)]
    return [{name: decoded(name, value) for name, value in values.items()} for values in found]


def applied(rules: Train, values: Mapping[str, Any]) -> Train:
    """The rules with these values; `lora.alpha` keeps its ratio to the rank."""
    for name, value in values.items():
        if name not in DATA:
            rules = _with(rules, name.split("."), value) if name != "lora.r" else _with_rank(rules, int(value))
    return rules


def _with_rank(rules: Train, rank: int) -> Train:
    alpha = max(1, round(rules.lora.alpha * rank / rules.lora.r))
    return rules.model_copy(update={"lora": rules.lora.model_copy(update={"r": rank, "alpha": alpha})})


def _with(section: S, path: Sequence[str], value: Any) -> S:
    head, *rest = path
    return section.model_copy(update={head: _with(getattr(section, head), rest, value) if rest else value})
