"""The artifacts of one task: immutable folders that exist once their manifest is written.

    store = TaskStore("support_tickets")
    artifact = store.current("clean_examples")      # Artifact, or None where it was never made

A process may die at any moment: files are written to a scratch folder, moved (or copied, on an object store) into
place, and the manifest comes last. A folder without a manifest does not exist, and the next writer removes it.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from upath import UPath

from finetune_pipeline.errors import StorageError, reading
from finetune_pipeline.records import Artifact, Reporter
from finetune_pipeline.store.files import LOCAL, Location, sha256_file, storage_error, write_atomic
from finetune_pipeline.store.locks import machine_lock
from finetune_pipeline.store.manifest import checked, content_of, holds
from finetune_pipeline.store.paths import STAGE_OF, data_root, home, stage_folder
from finetune_pipeline.store.revisions import newest_first, revision_name, split_name

MANIFEST = "manifest.json"
KEY = re.compile(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]{0,99}")  # the name of a folder, not the path of another


class TaskStore:
    """The artifacts of one task. `root` holds all tasks (default: the data root)."""

    def __init__(self, task: str, root: Location | None = None) -> None:
        self.task = task
        self.root = UPath(root if root is not None else data_root()) / task

    @property
    def is_local(self) -> bool:
        return self.root.protocol in LOCAL

    @property
    def local_root(self) -> Path:
        """The task's folder as a local path; for what people bring (raw/, review/) and declare."""
        if not self.is_local:
            raise StorageError(f"{self.root} is not on this machine's disk", "give sources full URLs in task.yaml")
        return Path(str(self.root))

    def folder(self, asset: str) -> UPath:
        return self.stage_folder(STAGE_OF[asset]) / asset

    def stage_folder(self, stage: str) -> UPath:
        """Where a stage keeps what is no artifact: checkpoints, desired states."""
        return self.root / stage_folder(stage)

    def unfinished(self, asset: str, kind: str, key: str) -> Path:
        """A local folder for what an unfinished artifact goes on from (`kind`: checkpoints, answers): beside the
        artifact, or in the home folder where the task lies on an object store."""
        if self.is_local:
            return Path(str(self.stage_folder(STAGE_OF[asset]))) / kind / key
        return home() / "unfinished" / self.task / kind / key

    @property
    def review_folder(self) -> UPath:
        """The experts' verdicts and the review's rounds. Outside the stages' folders: nothing can make them again."""
        return self.root / "review"

    # reading ------------------------------------------------------------------------------------------------

    def find(self, asset: str, key: str) -> Artifact | None:
        """The finished artifact of exactly this key, fetched to this machine if it lies elsewhere; else None."""
        folder = self.folder(asset) / key
        manifest = self._manifest(folder)
        if manifest is None:
            return None
        local = Path(str(folder)) if self.is_local else self._fetch(folder, manifest)
        return Artifact(asset, key, manifest["content_hash"], local, manifest)

    def current(self, asset: str) -> Artifact | None:
        """The artifact that counts now, or None if there never was one."""
        key = self._current_key(asset)
        return self.find(asset, key) if key is not None else None

    def latest(self, asset: str, key: str) -> Artifact | None:
        """The artifact to use for what `key` is the hash of: the current one if it was made from that, else that of the
        last run (revisions.py); None where none is finished."""
        current = self._current_key(asset)
        if current is not None and split_name(current)[0] == key and (found := self.find(asset, current)):
            return found
        return next(self._revisions(asset, key), None)

    def _revisions(self, asset: str, key: str) -> Iterator[Artifact]:
        names = newest_first((folder.name for folder in self._made(asset)), key)
        yield from (found for name in names if (found := self.find(asset, name)) is not None)

    def by_content(self, asset: str, content: str) -> Artifact | None:
        """An older artifact of this asset, found by its content hash (for rollback and lineage)."""
        found = (self.find(asset, folder.name) for folder in self._made(asset))
        return next((a for a in found if a is not None and a.content_hash == content), None)

    def manifests(self, asset: str) -> Iterator[Mapping[str, Any]]:
        """The manifests of every finished artifact of this asset, of which only the current one counts now."""
        found = map(self._manifest, self._made(asset))
        yield from (manifest for manifest in found if manifest is not None)

    def verify(self, artifact: Artifact) -> None:
        """StorageError if a file of the artifact is missing or was changed after it was finished.

        A file is read once for each of its states (store/file_hashes.py), so that asking again costs nothing.
        """
        files = artifact.manifest["files"]
        changed = [name for name, stated in files.items() if not holds(artifact.path(name), stated["sha256"])]
        if not changed and content_of(files) != artifact.content_hash:
            changed = [MANIFEST]
        if changed:
            raise StorageError(
                f"{artifact.path(changed[0])} is not what {artifact.asset} wrote (missing or changed)",
                f"delete {artifact.folder} and run again: it will be made anew from its inputs",
            )

    def _made(self, asset: str) -> list[UPath]:
        """The folders of all artifacts of this asset, finished or not."""
        folder = self.folder(asset)
        with reading(folder):
            return [p for p in folder.iterdir() if p.is_dir()] if folder.exists() else []

    def _manifest(self, folder: UPath) -> dict[str, Any] | None:
        with reading(folder / MANIFEST, f"delete {folder} and run again"):
            text = _text_of(folder / MANIFEST)
            return None if text is None else checked(json.loads(text))

    def _current_key(self, asset: str) -> str | None:
        """The key that `current` names, None where there is no such file."""
        pointer = self.folder(asset) / "current"
        with reading(pointer, f"delete {pointer} and run again: what it stood for is found by its key"):
            text = _text_of(pointer)
            if text is not None and not KEY.fullmatch(text.strip()):
                raise ValueError(f"{text[:40]!r} is no key of an artifact")
            return None if text is None else text.strip()

    def _fetch(self, folder: UPath, manifest: Mapping[str, Any]) -> Path:
        local = home() / "cache" / self.task / str(manifest["content_hash"])
        if not (local / MANIFEST).exists():
            for name in (*manifest["files"], MANIFEST):
                (local / name).parent.mkdir(parents=True, exist_ok=True)
                (local / name).write_bytes((folder / name).read_bytes())
        return local

    # writing ------------------------------------------------------------------------------------------------

    @contextmanager
    def scratch(self, asset: str) -> Iterator[Path]:
        """An empty folder to write an artifact's files into; gone afterwards, whatever happens."""
        parent = Path(str(self.root)) / ".work" if self.is_local else home() / "work" / self.task
        try:
            parent.mkdir(parents=True, exist_ok=True)
            _sweep(parent)
            folder = Path(tempfile.mkdtemp(prefix=f"{asset}@{platform.node()}@{os.getpid()}@", dir=parent))
        except OSError as error:
            raise storage_error(error, str(parent)) from error
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def commit(self, asset: str, key: str, scratch: Path, facts: Mapping[str, Any]) -> Artifact:
        """Make the files in `scratch` the artifact `key` of `asset`. `facts` joins the manifest
        (summary, inputs, declaration, verdict, ...).

        Files of a finished artifact are never replaced: where a forced run gave other files, they get a folder of their
        own (revisions.py); where it gave the same ones, only the manifest is written anew."""
        try:
            files = {
                str(p.relative_to(scratch)): {"sha256": sha256_file(p), "bytes": p.stat().st_size}
                for p in sorted(scratch.rglob("*"))
                if p.is_file()
            }
            content = content_of(files)
            before = next(self._revisions(asset, key), None)
            same = before is not None and before.content_hash == content and self._is_intact(before)
            number = 1 if before is None else split_name(before.key)[1] + (not same)
            name = revision_name(key, number)
            manifest = {"asset": asset, "task": self.task, "key": name, "content_hash": content, **facts}
            target = self.folder(asset) / name
            if not same:
                self._move(scratch, target)
            write_atomic(target / MANIFEST, json.dumps({**manifest, "files": files}, indent=1, ensure_ascii=False))
        except OSError as error:
            raise storage_error(error, str(self.folder(asset) / key)) from error
        artifact = self.find(asset, name)
        assert artifact is not None
        self.point(artifact)
        return artifact

    def _move(self, scratch: Path, target: UPath) -> None:
        if target.exists():
            target.fs.rm(target.path, recursive=True)  # left over from a process that died before the manifest
        target.parent.mkdir(parents=True, exist_ok=True)
        if not self.is_local:
            target.fs.put(str(scratch) + "/", target.path + "/", recursive=True)
            return
        for path in scratch.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        scratch.chmod(0o755)
        scratch.replace(str(target))

    def _is_intact(self, artifact: Artifact) -> bool:
        try:
            self.verify(artifact)
        except StorageError:
            return False
        return True

    def point(self, artifact: Artifact) -> None:
        """Make this artifact the one that counts now."""
        if self._current_key(artifact.asset) != artifact.key:
            write_atomic(self.folder(artifact.asset) / "current", artifact.key)

    @contextmanager
    def lock(self, asset: str, report: Reporter) -> Iterator[None]:
        """One writer of an asset on this machine at a time; the system releases it when the process dies."""
        with machine_lock(f"{self.task}-{asset}", report, f"{asset}: another run is making it; waiting"):
            yield


def _text_of(path: UPath) -> str | None:
    """The text of a small file; None where there is none."""
    try:
        text: str = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    return text


def _sweep(parent: Path) -> None:
    """Remove the scratch folders of this machine's processes that were killed."""
    for folder in parent.glob(f"*@{platform.node()}@*@*"):
        if not psutil.pid_exists(int(folder.name.split("@")[2])):
            shutil.rmtree(folder, ignore_errors=True)
