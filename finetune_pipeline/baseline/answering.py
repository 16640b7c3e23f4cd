"""What a job that answers the test rows has to do, as a value that travels to the job's process as JSON.

request = answer_request(context, partial, ["zero_shot", "classical"])
local.run("finetune_pipeline.baseline.job", request.to_json(), partial, context.report)

{"base": "…/models/SmolLM2…", "adapter": null, "split": "…/data_split/3fa9…", "partial": "…/answers/91c4…",
 "task": {…}, "variants": ["zero_shot", "classical"], "max_new_tokens": 48}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from finetune_pipeline.config import Task, task_from
from finetune_pipeline.errors import StorageError, reading
from finetune_pipeline.models import base_model
from finetune_pipeline.records import Artifact, Example, read_jsonl
from finetune_pipeline.store import StageContext

LENGTH_FACTOR = 1.2  # an answer may be this much longer than the longest completion of the training rows
ANSWERS = "answers.jsonl"


@dataclass(frozen=True, slots=True)
class AnswerRequest:
    """`base` and `adapter` are the folders of the model, `split` that of the rows, `partial` that of the answers so
    far; `max_new_tokens` is the longest answer."""

    base: Path
    adapter: Path | None
    split: Path
    partial: Path
    task: Task
    variants: tuple[str, ...]
    max_new_tokens: int

    def to_json(self) -> dict[str, Any]:
        return {
            "base": str(self.base),
            "adapter": str(self.adapter) if self.adapter else None,
            "split": str(self.split),
            "partial": str(self.partial),
            "task": self.task.model_dump(mode="json", by_alias=True),
            "variants": list(self.variants),
            "max_new_tokens": self.max_new_tokens,
        }

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> AnswerRequest:
        """StorageError that names the key when one is missing or unknown; DeclarationError when the task is wrong."""
        with reading_request(AnswerRequest, row):
            adapter = Path(row["adapter"]) if row["adapter"] else None
            base, split, partial = Path(row["base"]), Path(row["split"]), Path(row["partial"])
            variants, limit = tuple(row["variants"]), int(row["max_new_tokens"])
        return AnswerRequest(base, adapter, split, partial, task_from(row["task"], "the job's task"), variants, limit)

    def rows(self, split: str) -> list[Example]:
        """The rows of "train" or "test"."""
        return [Example.from_json(row) for row in read_jsonl(self.split / f"{split}.jsonl")]


@contextmanager
def reading_request(kind: type[Any], row: Mapping[str, Any]) -> Iterator[None]:
    """A block that parses the description of a job: StorageError that names a key which is missing or unknown."""
    names = {field.name for field in fields(kind)}
    if wrong := sorted(names ^ row.keys()):
        what = "is unknown" if wrong[0] in row else "is missing"
        raise StorageError(f"the job's description is wrong: the key {wrong[0]!r} {what}", "run again")
    with reading("the job's description", "run again"):
        yield


def answer_request(
    context: StageContext, partial: Path, variants: Sequence[str], adapter: Artifact | None = None
) -> AnswerRequest:
    """Answer the current test rows with the declared base model and `adapter`."""
    folder = base_model.folder_of(context.inputs["base_model"], context.task.base, context.report)
    return AnswerRequest(
        base=folder,
        adapter=adapter.folder if adapter else None,
        split=context.inputs["data_split"].folder,
        partial=partial,
        task=context.task,
        variants=tuple(variants),
        max_new_tokens=max_new_tokens(context, folder),
    )


def max_new_tokens(context: StageContext, folder: Path) -> int:
    """The declared limit, else the tokens of the longest training completion and 20 %. Test rows are not read."""
    if context.task.evaluate.max_new_tokens:
        return context.task.evaluate.max_new_tokens
    texts = [row.completion for row in context.inputs["data_split"].examples("train.jsonl")]
    longest = max(base_model.token_counter(folder)(texts), default=1)
    return max(int(longest * LENGTH_FACTOR), longest + 2)  # room for the end-of-turn token
