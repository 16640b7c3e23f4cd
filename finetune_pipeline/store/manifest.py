"""What a manifest has to hold, and the content hash that it states. Pure but for `holds`, which reads one file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune_pipeline.errors import reading
from finetune_pipeline.records import Verdict, content_id
from finetune_pipeline.store.file_hashes import file_hash


def checked(manifest: Any) -> dict[str, Any]:
    """The manifest, checked to hold what every reader relies on: its files with their hashes, and a whole verdict."""
    if not isinstance(manifest, dict) or not isinstance(manifest["content_hash"], str):
        raise ValueError("it is no manifest")
    content_of(manifest["files"])
    dict(manifest["summary"])
    if manifest.get("verdict"):
        Verdict.from_json(manifest["verdict"])
    return manifest


def content_of(files: Mapping[str, Mapping[str, Any]]) -> str:
    """The content hash of an artifact: of its files' names and hashes."""
    return content_id(*(part for name, file in files.items() for part in (name, str(file["sha256"]))))


def holds(path: Path, sha256: str) -> bool:
    """Whether the file is there and has this hash. StorageError when it cannot be read."""
    with reading(path):
        return path.exists() and file_hash(path) == sha256
