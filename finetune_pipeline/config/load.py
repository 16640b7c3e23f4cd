"""Load and validate task.yaml. All problems are reported together, each with key, value and hint.

task = load_task(Path("data/support_tickets"))      # DeclarationError lists every problem
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from finetune_pipeline.config.task import Task
from finetune_pipeline.config.task_yaml import MAX_BYTES, parse
from finetune_pipeline.errors import DeclarationError


def task_from(raw: Any, where: str) -> Task:
    """The validated declaration. DeclarationError lists every problem with key, value and hint."""
    if not isinstance(raw, dict):
        raise DeclarationError(f"{where} is not a mapping of keys", "begin with `name:`, or run `finetune init`")
    try:
        return Task.model_validate(raw)
    except ValidationError as error:
        problems = problems_of(error, Task)
        count = "one problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise DeclarationError(f"{where} has {count}", problems=problems) from None


def problems_of(error: ValidationError, section: type[BaseModel]) -> tuple[str, ...]:
    """Every problem of a mapping that is no `section`: key, what is wrong, value or hint."""
    found = [e for e in error.errors() if not _is_consequence(e) and not _is_other_form(e)]
    return tuple(_problem(e, section) for e in found)


def load_task(folder: Path) -> Task:
    """The declaration `folder`/task.yaml. DeclarationError when it is missing, not YAML, or invalid in any key."""
    path = folder / "task.yaml"
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise DeclarationError(
            f"{path} does not exist", "run `finetune init` to make a task, or check the name, and the target of a link"
        ) from None
    except OSError as error:
        raise DeclarationError(
            f"{path} cannot be read: {error.strerror}", "check its permissions; it has to be a file"
        ) from None
    task = task_from(parse(raw, str(path)), str(path))
    if task.name != folder.name:
        raise DeclarationError(
            f"{path} declares `name: {task.name}`, but its folder is {folder.name}", "give both the same name"
        )
    return task


def _is_consequence(error: Any) -> bool:
    """Whether a list is "too short" only because its items are invalid; each of them is reported already."""
    return error["type"] == "too_short" and bool(len(error["input"]) >= error["ctx"]["min_length"])


def _is_other_form(error: Any) -> bool:
    """Whether a value is not of the other form that its key may have: a list, where it is a mapping, or the reverse."""
    other = {"tuple_type": dict, "model_type": list}.get(error["type"])
    form = str(error["loc"][-1]) if error["loc"] else ""
    return other is not None and isinstance(error["input"], other) and (form == "Range" or "tuple" in form)


def _problem(error: Any, section: type[BaseModel]) -> str:
    key = ".".join(str(part) for part in error["loc"]) or "(whole file)"
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key. {_nearest(error['loc'], section)}"
    if error["type"] == "missing":
        return f"{key}: missing; see docs/configuration.md"
    message = error["msg"].removeprefix("Value error, ")
    shown = repr(error["input"])
    value = "" if isinstance(error["input"], dict) or len(shown) > 80 else f" (it is {shown})"
    return f"{key}: {message}{value}"


def _nearest(loc: tuple[Any, ...], section: type[BaseModel]) -> str:
    """The most similar key of the same section, or all of its keys."""
    model: Any = section
    for part in loc[:-1]:
        named = {field.alias or name: field for name, field in model.model_fields.items()}
        if isinstance(part, str) and part in named:
            annotation = named[part].annotation
            model = next(
                (a for a in (annotation, *getattr(annotation, "__args__", ())) if hasattr(a, "model_fields")), model
            )
    names = [f.alias or n for n, f in model.model_fields.items()]
    close = difflib.get_close_matches(str(loc[-1]), names, n=1)
    return f"Did you mean `{close[0]}`?" if close else f"Known keys: {', '.join(names)}"
