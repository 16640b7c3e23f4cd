"""The description or the result of a job as a frozen dataclass, with a checked conversion from and to JSON.

@dataclass(frozen=True)
class ConversionSpec(JobData):
    gguf: Path
    folder: Path

ConversionSpec(Path("a.gguf"), Path("out")).to_json()     # {"gguf": "a.gguf", "folder": "out"}
ConversionSpec.from_json({"gguf": "a.gguf"})              # StorageError: ConversionSpec: folder: Field required
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from pydantic import ConfigDict, TypeAdapter, ValidationError

from finetune_pipeline.errors import StorageError


@dataclass(frozen=True)
class JobData:
    """Base class. Its fields have types that pydantic knows: numbers, strings, paths, sections of task.yaml."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    def to_json(self) -> dict[str, Any]:
        plain: dict[str, Any] = TypeAdapter(type(self)).dump_python(self, mode="json", by_alias=True)
        return plain

    @classmethod
    def from_json(cls, described: Mapping[str, Any]) -> Self:
        """StorageError that names every key that is missing, unknown or of another type."""
        try:
            return TypeAdapter(cls).validate_python(dict(described))
        except ValidationError as error:
            problems = [f"{'.'.join(map(str, line['loc']))}: {line['msg']}" for line in error.errors()]
            message = f"the file of a job is wrong: {cls.__name__}: {'; '.join(problems)}"
            raise StorageError(message, "run again; a file of an artifact: materialize that asset again") from error
