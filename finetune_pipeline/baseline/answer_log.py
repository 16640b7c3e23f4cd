"""A JSONL file of answers that is appended to while a job runs, so that a killed job resumes after the last whole line.

    log = AnswerFile(folder / "answers.jsonl")
    log.append(Answer("9f1c20e4a7b35d68", "few_shot", "delivery"))
    log.of("few_shot")                                # {"9f1c20e4a7b35d68": Answer(...)}

Each answer is one line, written and flushed at once. A torn last line is removed when the file is opened; its row is
answered again.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from finetune_pipeline.errors import reading
from finetune_pipeline.records import Answer, dumps
from finetune_pipeline.store import storage_error


class AnswerFile:
    """`answers` holds the answers of the file in its order. StorageError when the file is damaged."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        with reading(path, f"delete {path} and run again: all its rows are answered again"):
            raw = path.read_bytes() if path.exists() else b""
            whole = raw[: raw.rfind(b"\n") + 1]
            self.answers = [Answer(**json.loads(line)) for line in whole.decode("utf-8").split("\n")[:-1]]
        if whole != raw:
            path.write_bytes(whole)

    def of(self, variant: str) -> dict[str, Answer]:
        """The answers of one variant by row id."""
        return {answer.id: answer for answer in self.answers if answer.variant == variant}

    def append(self, answer: Answer) -> None:
        """Add one answer to the file and to `answers`. StorageError when the disk is full or not writable."""
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(dumps(asdict(answer)) + "\n")
        except OSError as error:
            raise storage_error(error, str(self._path)) from error
        self.answers.append(answer)
