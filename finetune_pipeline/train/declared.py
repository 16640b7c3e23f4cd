"""What is wrong with `train` and `search`, as far as it can be known before anything is made: `finetune validate`.

    problems(task)      # ["train.method: qlora needs the package bitsandbytes (pip install …)"]

The training checks the same again. A base model of the Hub or a GGUF file, whose modules are not known yet, is left to
it.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from finetune_pipeline.config import Task
from finetune_pipeline.errors import DeclarationError, ModelError
from finetune_pipeline.models.model_files import linear_names
from finetune_pipeline.models.model_source import local_folder
from finetune_pipeline.models.quantization import INSTALL
from finetune_pipeline.train.search.placement import search_backend


def problems(task: Task) -> list[str]:
    """Every problem, with what to do. Reads headers of local files; loads nothing."""
    return [*_missing_packages(task), *_unknown_modules(task, local_folder(task)), *_unplaced_search(task)]


def _missing_packages(task: Task) -> Iterator[str]:
    if find_spec("bitsandbytes") is not None:
        return
    if task.train.method == "qlora":
        yield f"train.method: qlora needs the package bitsandbytes ({INSTALL})"
    if task.train.optimizer == "adamw_8bit":
        yield f"train.optimizer: adamw_8bit needs the package bitsandbytes ({INSTALL})"


def _unknown_modules(task: Task, folder: Path | None) -> Iterator[str]:
    declared = task.train.lora.target_modules
    if declared == "all-linear" or task.train.method == "full" or folder is None:
        return
    try:
        found = linear_names(folder)
    except ModelError:  # reported by the check of the base model
        return
    for name in sorted(set(declared) - found):
        known = ", ".join(sorted(found))
        yield f"train.lora.target_modules: the base model has no linear layer {name} (it has {known}; or all-linear)"


def _unplaced_search(task: Task) -> Iterator[str]:
    if task.search is None:
        return
    try:
        search_backend(task.train)
    except DeclarationError as error:
        yield f"search: {error}"
