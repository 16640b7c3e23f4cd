"""A finished artifact, with readers for its files.

artifact = store.current("clean_examples")
artifact.summary                                   # {"rows": 742, "dropped": 135}
next(artifact.examples()).origin                   # "tickets.csv:2"
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_pipeline.errors import reading
from finetune_pipeline.records.examples import Example
from finetune_pipeline.records.jsonl import read_jsonl
from finetune_pipeline.records.revisions import split_name
from finetune_pipeline.records.verdicts import Verdict


@dataclass(frozen=True, slots=True)
class Artifact:
    """`folder` is local and complete, `manifest` is the content of its manifest.json.

    `content_hash` is the hash of the files' names and contents: verdicts, lineage and keys refer to it.
    """

    asset: str
    key: str
    content_hash: str
    folder: Path
    manifest: Mapping[str, Any]

    @property
    def inputs_key(self) -> str:
        """The hash of what it is made from: the key without the number of a forced run."""
        return split_name(self.key)[0]

    @property
    def summary(self) -> Mapping[str, Any]:
        """The figures of `StageResult.summary`."""
        summary: Mapping[str, Any] = self.manifest["summary"]
        return summary

    @property
    def verdict(self) -> Verdict | None:
        """The verdict that is stored with the artifact; None where the asset has none."""
        raw = self.manifest.get("verdict")
        return Verdict.from_json(raw) if raw else None

    def path(self, name: str) -> Path:
        """The path of one of its files."""
        return self.folder / name

    def reading(self, name: str) -> AbstractContextManager[None]:
        """A context that reads and parses the file `name`; errors become a StorageError with a hint."""
        return reading(self.path(name), f"delete {self.folder} and run again")

    def json(self, name: str) -> Any:
        """The value of a JSON file. StorageError when it is missing or damaged."""
        with self.reading(name):
            return json.loads(self.path(name).read_text("utf-8"))

    def examples(self, name: str = "examples.jsonl") -> Iterator[Example]:
        """The rows of a file. StorageError when it is missing or damaged."""
        with self.reading(name):
            yield from map(Example.from_json, read_jsonl(self.path(name)))
