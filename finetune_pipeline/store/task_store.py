"""The artifacts of one task: immutable folders that exist once their manifest is written.

    store = TaskStore("support_tickets")
    artifact = store.current("clean_examples")      # Artifact, or None if it was never made

A process may be killed at any moment: files are written to a scratch folder, moved into place (copied on an object
store), and the manifest is written last. A folder without a manifest is no artifact; the next writer removes it.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from upath import UPath

from finetune_pipeline.errors import StorageError, reading
from finetune_pipeline.records import Artifact, Reporter
from finetune_pipeline.records.revisions import newest_first, revision_name, split_name
from finetune_pipeline.store.files import LOCAL, Location, sha256_file, storage_error, write_atomic
from finetune_pipeline.store.locks import machine_lock
from finetune_pipeline.store.manifest import (
    MANIFEST,
    content_hash_of,
    has_hash,
    is_complete,
    read_if_exists,
    read_manifest,
)
from finetune_pipeline.store.paths import STAGE_OF, data_root, home, stage_folder

KEY = re.compile(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]{0,99}")  # the name of a folder, not the path of another


class TaskStore:
    """The artifacts of one task. `data` is the folder of all tasks (default: the data root), `root` that of this
    task."""

    def __init__(self, task: str, data: Location | None = None) -> None:
        self.task = task
        self.root = UPath(data if data is not None else data_root()) / task

    @property
    def is_local(self) -> bool:
        """Whether the data root is a folder of this machine."""
        return self.root.protocol in LOCAL

    def folder(self, asset: str) -> UPath:
        """The folder of all artifacts of an asset."""
        return self.stage_folder(STAGE_OF[asset]) / asset

    def stage_folder(self, stage: str) -> UPath:
        """The folder of a stage: its assets, and files that are no artifacts (checkpoints, the deployment state)."""
        return self.root / stage_folder(stage)

    def unfinished(self, asset: str, kind: str, key: str) -> Path:
        """A local folder for the checkpoints or partial answers (`kind`) of an unfinished artifact: beside the
        artifact, or in the home folder when the task is on an object store."""
        if self.is_local:
            return Path(str(self.stage_folder(STAGE_OF[asset]))) / kind / key
        return home() / "unfinished" / self.task / kind / key

    @property
    def review_folder(self) -> UPath:
        """The reviewers' verdicts and rounds. Outside the folders of the stages: no run can make them again."""
        return self.root / "review"

    # reading ------------------------------------------------------------------------------------------------

    def find(self, asset: str, key: str) -> Artifact | None:
        """The finished artifact of exactly this key, fetched to this machine from an object store; else None.

        An artifact with a missing file counts as not made, so that the next run makes it again. Only existence is
        checked here (`verify` compares hashes), and on an object store only what is fetched, without extra requests.
        """
        folder = self.folder(asset) / key
        manifest = read_manifest(folder)
        if manifest is None:
            return None
        local = Path(str(folder)) if self.is_local else self._fetch(folder, manifest)
        if not is_complete(local, manifest):
            return None
        return Artifact(asset, key, manifest["content_hash"], local, manifest)

    def current(self, asset: str) -> Artifact | None:
        """The current artifact; None if the asset was never made, or a file of it is missing."""
        key = self._current_key(asset)
        return self.find(asset, key) if key is not None else None

    def latest(self, asset: str, key: str) -> Artifact | None:
        """The artifact to use for what `key` is the hash of: the current one if it was made from that, else that of the
        last run (records/revisions.py); None where none is finished."""
        current = self.current(asset)
        return current if current is not None and current.inputs_key == key else next(self._revisions(asset, key), None)

    def _revisions(self, asset: str, key: str) -> Iterator[Artifact]:
        names = newest_first((folder.name for folder in self._artifact_folders(asset)), key)
        yield from (found for name in names if (found := self.find(asset, name)) is not None)

    def by_content(self, asset: str, content_hash: str) -> Artifact | None:
        """The artifact of this asset with this content hash, current or older (for rollback and lineage); else None."""
        artifacts = (self.find(asset, folder.name) for folder in self._artifact_folders(asset))
        return next((a for a in artifacts if a is not None and a.content_hash == content_hash), None)

    def manifests(self, asset: str) -> Iterator[Mapping[str, Any]]:
        """The manifests of all finished artifacts of this asset, current and older."""
        manifests = map(read_manifest, self._artifact_folders(asset))
        yield from (manifest for manifest in manifests if manifest is not None)

    def verify(self, artifact: Artifact) -> None:
        """StorageError if a file of the artifact is missing or was changed since it was committed.

        Hashes are cached (store/file_hashes.py): a second call reads no unchanged file.
        """
        files = artifact.manifest["files"]
        changed = [name for name, file in files.items() if not has_hash(artifact.path(name), file["sha256"])]
        if not changed and content_hash_of(files) != artifact.content_hash:
            changed = [MANIFEST]
        if changed:
            raise StorageError(
                f"{artifact.path(changed[0])} is not what {artifact.asset} wrote (missing or changed)",
                f"delete {artifact.folder} and run again: it will be made again from its inputs",
            )

    def _artifact_folders(self, asset: str) -> list[UPath]:
        """The folders of all artifacts of this asset, finished or not."""
        folder = self.folder(asset)
        with reading(folder):
            return [p for p in folder.iterdir() if p.is_dir()] if folder.exists() else []

    def _current_key(self, asset: str) -> str | None:
        """The key in the file `current`; None if there is no such file."""
        pointer = self.folder(asset) / "current"
        with reading(pointer, f"delete {pointer} and run again: the artifact is found by its key"):
            text = read_if_exists(pointer)
            if text is not None and not KEY.fullmatch(text.strip()):
                raise ValueError(f"{text[:40]!r} is not the key of an artifact")
            return None if text is None else text.strip()

    def _fetch(self, folder: UPath, manifest: Mapping[str, Any]) -> Path:
        """Download the artifact to this machine's cache, unless it is there already; returns the local folder. A file
        that the object store does not have stays missing there too."""
        local = home() / "cache" / self.task / str(manifest["content_hash"])
        if not ((local / MANIFEST).exists() and is_complete(local, manifest)):
            for name in (*manifest["files"], MANIFEST):
                (local / name).parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileNotFoundError):
                    (local / name).write_bytes((folder / name).read_bytes())
        return local

    # writing ------------------------------------------------------------------------------------------------

    @contextmanager
    def scratch(self, asset: str) -> Iterator[Path]:
        """An empty folder for the files of an artifact; removed at the end, also after an error."""
        parent = Path(str(self.root)) / ".work" if self.is_local else home() / "work" / self.task
        try:
            parent.mkdir(parents=True, exist_ok=True)
            _remove_orphans(parent)
            folder = Path(tempfile.mkdtemp(prefix=f"{asset}@{platform.node()}@{os.getpid()}@", dir=parent))
        except OSError as error:
            raise storage_error(error, str(parent)) from error
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def commit(self, asset: str, key: str, scratch: Path, facts: Mapping[str, Any]) -> Artifact:
        """Make the files in `scratch` the artifact `key` of `asset`, and the current one. `facts` (summary, inputs,
        declaration, verdict, ...) are written into the manifest. StorageError when a file cannot be written.

        Files of a finished artifact are never replaced: if a forced run gave other files, they get a folder of their
        own (records/revisions.py); if it gave the same ones, only the manifest is written again."""
        try:
            files = {
                str(p.relative_to(scratch)): {"sha256": sha256_file(p), "bytes": p.stat().st_size}
                for p in sorted(scratch.rglob("*"))
                if p.is_file()
            }
            content = content_hash_of(files)
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
            target.fs.rm(target.path, recursive=True)  # left by a process that was killed before its manifest
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
        """Make this artifact the current one."""
        if self._current_key(artifact.asset) != artifact.key:
            write_atomic(self.folder(artifact.asset) / "current", artifact.key)

    @contextmanager
    def lock(self, asset: str, report: Reporter) -> Iterator[None]:
        """One writer of an asset on this machine at a time; the operating system releases it when the process ends."""
        with machine_lock(f"{self.task}-{asset}", report, f"{asset}: another run is making it; waiting for it"):
            yield


def _remove_orphans(parent: Path) -> None:
    """Remove the scratch folders of processes of this machine that no longer run."""
    for folder in parent.glob(f"*@{platform.node()}@*@*"):
        if not psutil.pid_exists(int(folder.name.split("@")[2])):
            shutil.rmtree(folder, ignore_errors=True)
