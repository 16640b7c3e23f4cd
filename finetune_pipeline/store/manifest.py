"""The manifest of an artifact: manifest.json, written last, with the hashes of the files.

    read_manifest(folder)["files"]
    {"examples.jsonl": {"sha256": "9f86d0…", "bytes": 181023}, "drops.jsonl": {...}}

Other keys: asset, task, key, content_hash, made_at, seconds, peak_mb, code, fingerprint, inputs, declaration, summary,
verdict.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from upath import UPath

from finetune_pipeline.errors import reading
from finetune_pipeline.records import Verdict, content_id
from finetune_pipeline.store.file_hashes import file_hash

MANIFEST = "manifest.json"


def read_manifest(folder: UPath) -> dict[str, Any] | None:
    """The manifest in the folder; None if there is none. StorageError when it is damaged."""
    with reading(folder / MANIFEST, f"delete {folder} and run again"):
        text = read_if_exists(folder / MANIFEST)
        return None if text is None else _validated(json.loads(text))


def content_hash_of(files: Mapping[str, Mapping[str, Any]]) -> str:
    """The content hash of an artifact: the hash of the names and hashes of its files."""
    return content_id(*(part for name, file in files.items() for part in (name, str(file["sha256"]))))


def is_complete(folder: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether every file that the manifest names is in the folder."""
    with reading(folder, f"delete {folder} and run again"):
        return all((folder / name).exists() for name in manifest["files"])


def has_hash(path: Path, sha256: str) -> bool:
    """Whether the file exists and has this hash. StorageError when it cannot be read."""
    with reading(path):
        return path.exists() and file_hash(path) == sha256


def read_if_exists(path: UPath) -> str | None:
    """The text of a small file; None if there is no such file."""
    try:
        text: str = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    return text


def _validated(manifest: Any) -> dict[str, Any]:
    """The manifest, with all keys that readers rely on. ValueError, TypeError or LookupError when it is incomplete."""
    if not isinstance(manifest, dict) or not isinstance(manifest["content_hash"], str):
        raise ValueError("it is not a manifest")
    content_hash_of(manifest["files"])
    dict(manifest["summary"])
    if manifest.get("verdict"):
        Verdict.from_json(manifest["verdict"])
    return manifest
