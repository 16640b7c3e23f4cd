"""The only place that knows paths. Artifacts are immutable folders; a manifest written last makes one exist.

    <data>/<task>/task.yaml, raw/                    what people declare and bring (never written here)
    <data>/<task>/review/                            what people said of the rows: their work, committed like the above
    <data>/<task>/2_clean/clean_examples/3fa9…/      one finished artifact: its files and manifest.json
    <data>/<task>/2_clean/clean_examples/current     the key of the one that counts now
    <home>/                                          models, MLflow, Dagster, logs: this machine's own

`<data>` is $FINETUNE_DATA (default: ./data), a folder or any fsspec URL; `<home>` is $FINETUNE_HOME (default:
./.finetune), always local. A key is the hash of what an artifact is made from (inputs, declaration, code version), so
that the same work is never done twice; a content hash is the hash of its files, which verdicts and lineage refer to.

A process may die at any moment: files are written to a scratch folder, moved (or copied, on an object store) into
place, and the manifest comes last. A folder without a manifest does not exist, and is swept away by the next writer.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import psutil
from filelock import FileLock, Timeout
from upath import UPath

from finetune_pipeline.config import TASK_NAME
from finetune_pipeline.errors import GateRefused, StorageError, reading
from finetune_pipeline.records import Artifact, Reporter, Verdict, content_id

MANIFEST = "manifest.json"
LOCAL = ("", "file", "local")  # fsspec's names of this machine's file system
KEY = re.compile(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]{0,99}")  # the name of a folder, not the path of another
Location: TypeAlias = Path | UPath


def data_root() -> UPath:
    """The folder (or object store) of all tasks."""
    return UPath(os.environ.get("FINETUNE_DATA") or Path.cwd() / "data")


def home() -> Path:
    """This machine's own folder: models, MLflow, Dagster, logs, scratch."""
    return Path(os.environ.get("FINETUNE_HOME") or Path.cwd() / ".finetune").absolute()


def models_folder() -> Path:
    return home() / "models"


def mlflow_uri() -> str:
    """$MLFLOW_TRACKING_URI, else SQLite in the home folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"


def mlflow_artifacts() -> Path:
    return home() / "mlartifacts"


def dagster_home() -> Path:
    return Path(os.environ.get("DAGSTER_HOME") or home() / "dagster")


def traffic_folder(task: str) -> Path:
    """Where the endpoint writes its log of a task: one JSONL file a day."""
    return home() / "traffic" / task


def task_names() -> list[str]:
    """Every folder of the data root that holds a task.yaml, sorted; also one that cannot be looked into (no permission,
    a link to nothing) and has a name that a task may have, as `lost+found` and an editor's `.#README.md` have not:
    whoever opens such a task is told what is wrong. StorageError when the root cannot be read."""
    root = data_root()
    with reading(root):
        folders = list(root.iterdir()) if root.exists() or _is_link(root) else []
    return sorted(folder.name for folder in folders if _may_be_task(folder))


def _may_be_task(folder: UPath) -> bool:
    named = bool(TASK_NAME.fullmatch(folder.name))
    try:
        (folder / "task.yaml").stat()
    except FileNotFoundError:
        return _is_link(folder / "task.yaml") or (named and _is_link(folder) and not folder.exists())
    except NotADirectoryError:
        return False  # a file beside the tasks
    except OSError:
        return named
    return True


def _is_link(path: UPath) -> bool:
    return path.protocol in LOCAL and Path(str(path)).is_symlink()


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Location, text: str) -> None:
    """Replace a small file as a whole: readers see the old text or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(path, UPath) and path.protocol not in LOCAL:
        path.write_text(text, encoding="utf-8")  # object stores put a whole object or nothing
        return
    handle, scratch = tempfile.mkstemp(dir=str(path.parent), prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(scratch).chmod(0o644)
        Path(scratch).replace(str(path))
    except OSError as error:
        Path(scratch).unlink(missing_ok=True)
        raise storage_error(error, str(path)) from error


def is_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def storage_error(error: OSError, where: str) -> StorageError:
    """Say what an operating system's error means to the person who has to mend it."""
    if is_full(error):
        there = next((str(p) for p in (Path(where), *Path(where).parents) if p.exists()), ".")
        free = shutil.disk_usage(there).free
        return StorageError(
            f"no room left to write {where} ({free / 1e9:.1f} GB free)",
            "free some space and run the same command again; everything finished so far is kept",
        )
    return StorageError(f"cannot write {where}: {error.strerror or error}", "check the folder's rights and the disk")


class TaskStore:
    """The artifacts of one task. `folders` maps each asset to its stage folder (see graph.py)."""

    def __init__(self, task: str, folders: Mapping[str, str], root: Location | None = None) -> None:
        self.task = task
        self.folders = folders
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
        return self.root / self.folders[asset] / asset

    def stage_folder(self, stage: str) -> UPath:
        """Where a stage keeps what is no artifact: checkpoints, desired states."""
        return self.root / stage

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
        return Artifact(asset, key, manifest["content"], local, manifest)

    def current(self, asset: str) -> Artifact | None:
        """The artifact that counts now, or None if there never was one."""
        key = self._current_key(asset)
        return self.find(asset, key) if key is not None else None

    def by_content(self, asset: str, content: str) -> Artifact | None:
        """An older artifact of this asset, found by its content hash (for rollback and lineage)."""
        found = (self.find(asset, folder.name) for folder in self._made(asset))
        return next((a for a in found if a is not None and a.content == content), None)

    def manifests(self, asset: str) -> Iterator[Mapping[str, Any]]:
        """The manifests of every finished artifact of this asset, of which only the current one counts now."""
        found = map(self._manifest, self._made(asset))
        yield from (manifest for manifest in found if manifest is not None)

    def verify(self, artifact: Artifact) -> None:
        """StorageError if a file of the artifact is missing or was changed after it was finished.

        A file is read once for each of its states (file_hashes.py), so that asking again costs nothing.
        """
        files = artifact.manifest["files"]
        changed = [name for name, stated in files.items() if not _holds(artifact.path(name), stated["sha256"])]
        if not changed and _content_of(files) != artifact.content:
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
            return None if text is None else _sound(json.loads(text))

    def _current_key(self, asset: str) -> str | None:
        """The key that `current` names, None where there is no such file."""
        pointer = self.folder(asset) / "current"
        with reading(pointer, f"delete {pointer} and run again: what it stood for is found by its key"):
            text = _text_of(pointer)
            if text is not None and not KEY.fullmatch(text.strip()):
                raise ValueError(f"{text[:40]!r} is no key of an artifact")
            return None if text is None else text.strip()

    def _fetch(self, folder: UPath, manifest: Mapping[str, Any]) -> Path:
        local = home() / "cache" / self.task / str(manifest["content"])
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
        (summary, inputs, declaration, verdict, ...)."""
        try:
            files = {
                str(p.relative_to(scratch)): {"sha256": sha256_file(p), "bytes": p.stat().st_size}
                for p in sorted(scratch.rglob("*"))
                if p.is_file()
            }
            content = _content_of(files)
            manifest = {"asset": asset, "task": self.task, "key": key, "content": content, **facts, "files": files}
            target = self.folder(asset) / key
            if target.exists():
                target.fs.rm(target.path, recursive=True)  # left over from a process that died before the manifest
            target.parent.mkdir(parents=True, exist_ok=True)
            if self.is_local:
                for path in scratch.rglob("*"):
                    path.chmod(0o755 if path.is_dir() else 0o644)
                scratch.chmod(0o755)
                scratch.replace(str(target))
            else:
                target.fs.put(str(scratch) + "/", target.path + "/", recursive=True)
            write_atomic(target / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False))
        except OSError as error:
            raise storage_error(error, str(self.folder(asset) / key)) from error
        artifact = self.find(asset, key)
        assert artifact is not None
        self.point(artifact)
        return artifact

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


def _sound(manifest: Any) -> dict[str, Any]:
    """The manifest, checked to hold what every reader relies on: its files with their hashes, and a whole verdict."""
    if not isinstance(manifest, dict) or not isinstance(manifest["content"], str):
        raise ValueError("it is no manifest")
    _content_of(manifest["files"])
    dict(manifest["summary"])
    if manifest.get("verdict"):
        Verdict.from_json(manifest["verdict"])
    return manifest


def _holds(path: Path, sha256: str) -> bool:
    """Whether the file is there and has this hash. StorageError when it cannot be read."""
    from finetune_pipeline.file_hashes import file_hash  # which remembers with what is in this module

    with reading(path):
        return path.exists() and file_hash(path) == sha256


def _content_of(files: Mapping[str, Mapping[str, Any]]) -> str:
    """The content hash of an artifact: of its files' names and hashes."""
    return content_id(*(part for name, file in files.items() for part in (name, str(file["sha256"]))))


def _sweep(parent: Path) -> None:
    """Remove the scratch folders of this machine's processes that were killed."""
    for folder in parent.glob(f"*@{platform.node()}@*@*"):
        if not psutil.pid_exists(int(folder.name.split("@")[2])):
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def machine_lock(name: str, report: Reporter, waiting: str) -> Iterator[None]:
    """A lock among the processes of this machine. Says `waiting` once, and stays cancellable while it waits."""
    path = home() / "locks" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, said = FileLock(str(path)), False
    while not lock.is_locked:
        try:
            lock.acquire(timeout=1.0 if said else 0.05)
        except Timeout:
            if not said:
                report.log(waiting)
            said = True
            report.alive()
    try:
        yield
    finally:
        lock.release()


def require_verdict(gate: Artifact | None, name: str, about: Artifact) -> Artifact:
    """Refuse to go on unless the gate `name` passed for exactly the content of `about`; gives the gate back.

    A blocking check in Dagster stops only its own run; this is what makes a gate hold across runs.
    """
    if gate is None or gate.verdict is None:
        raise GateRefused(f"{name} has not judged {about.asset} {about.content} yet", f"materialise {name} first")
    if gate.verdict.about != about.content:
        raise GateRefused(
            f"{name} judged other data ({gate.verdict.about}) than {about.asset} has now ({about.content})",
            f"materialise {name} again; a verdict holds only for the very data it saw",
        )
    if not gate.verdict.passed:
        raise GateRefused(f"{name} refused {about.asset}: {gate.verdict.summary}", gate_cure(name))
    return gate


def gate_cure(name: str) -> str:
    return {
        "suitability_report": "add examples, or set `suitability.override` to the reason for going on regardless",
        "data_quality": "read the report (`finetune status`, or the desk), mend the rows, and run again",
        "expert_review": "mend what the experts rejected in the raw data, and other rows of its kind; the next round "
        "takes rows that nobody has reviewed yet",
        "data_split": "the rows named there stand on both sides: mend their groups, and run again",
        "release_decision": "read the decision's reasons; more data, or another declaration, makes a new candidate",
        "deployed_endpoint": "the endpoint was rolled back; read the parity report for the rows that differ",
    }.get(name, "read the gate's report")
