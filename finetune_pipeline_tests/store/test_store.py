"""Artifacts are complete or do not exist, also when the process that writes them is killed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from upath import UPath

from finetune_pipeline import store as stores
from finetune_pipeline.errors import GateRefused, JobCanceled, StorageError
from finetune_pipeline.records import Artifact, Silent, Verdict
from finetune_pipeline.store import MANIFEST, TaskStore, require_verdict

ASSET = "clean_examples"

# A writer that gets SIGKILL just before the file of this name (the manifest or the pointer) is written.
KILLED = """
import os, signal, sys
from pathlib import Path
from finetune_pipeline.store import task_store as stores
real = stores.write_atomic
def write(path, text):
    if path.name == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)
    real(path, text)
stores.write_atomic = write
store = stores.TaskStore("tickets", Path(sys.argv[1]))
with store.scratch("clean_examples") as folder:
    (folder / "examples.jsonl").write_text("half")
    store.commit("clean_examples", "k1", folder, {"summary": {}})
"""


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path / "home"))


@pytest.fixture
def store(tmp_path: Path) -> TaskStore:
    return TaskStore("tickets", tmp_path / "data")


def write(store: TaskStore, key: str, text: str = "rows", verdict: Verdict | None = None) -> Artifact:
    with store.scratch(ASSET) as folder:
        (folder / "deep").mkdir()
        (folder / "examples.jsonl").write_text(text, "utf-8")
        (folder / "deep" / "more.txt").write_text("more", "utf-8")
        facts = {"summary": {"rows": 1}, "verdict": verdict.to_json() if verdict else None}
        return store.commit(ASSET, key, folder, facts)


def killed_writer(root: Path, before: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(root), before], check=False)
    assert done.returncode == -signal.SIGKILL


def scratch_folders(root: Path) -> list[Path]:
    return list((root / "tickets" / ".work").iterdir())


def test_an_artifact_is_found_by_key_by_content_and_as_the_current_one(store: TaskStore) -> None:
    made = write(store, "k1")
    assert store.find(ASSET, "k1") == made == store.current(ASSET) == store.by_content(ASSET, made.content_hash)
    assert made.path("deep/more.txt").read_text("utf-8") == "more"
    assert store.find(ASSET, "k2") is None
    assert store.by_content(ASSET, "0" * 16) is None


def test_an_empty_store_has_no_artifacts(store: TaskStore) -> None:
    assert store.current(ASSET) is None
    assert store.find(ASSET, "k1") is None
    assert store.by_content(ASSET, "0" * 16) is None


def test_current_is_the_artifact_made_or_pointed_to_last(store: TaskStore) -> None:
    first, second = write(store, "k1", "one"), write(store, "k2", "two")
    assert store.current(ASSET) == second
    store.point(first)
    assert store.current(ASSET) == first


def test_the_content_hash_depends_on_names_and_bytes_only(store: TaskStore) -> None:
    same, again, other = write(store, "k1", "x"), write(store, "k2", "x"), write(store, "k3", "y")
    assert same.content_hash == again.content_hash != other.content_hash


def test_a_writer_killed_before_the_manifest_leaves_no_artifact(store: TaskStore, tmp_path: Path) -> None:
    killed_writer(tmp_path / "data", before=MANIFEST)
    assert (store.folder(ASSET) / "k1" / "examples.jsonl").exists()  # its files were in place already
    assert store.find(ASSET, "k1") is None
    assert store.current(ASSET) is None
    assert write(store, "k1", "whole").path("examples.jsonl").read_text("utf-8") == "whole"


def test_a_writer_killed_before_the_pointer_leaves_a_complete_artifact(store: TaskStore, tmp_path: Path) -> None:
    killed_writer(tmp_path / "data", before="current")
    found = store.find(ASSET, "k1")
    assert found is not None
    store.verify(found)
    assert store.current(ASSET) is None


def test_the_scratch_folder_of_a_killed_process_is_removed(store: TaskStore, tmp_path: Path) -> None:
    code = KILLED.replace("store.commit(", "os.kill(os.getpid(), signal.SIGKILL); (")
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "data"), ""], check=False)
    assert len(scratch_folders(tmp_path / "data")) == 1
    with store.scratch(ASSET) as mine, store.scratch(ASSET) as other:
        assert sorted(scratch_folders(tmp_path / "data")) == sorted([mine, other])  # and a living one is not


def test_scratch_is_removed_after_an_error(store: TaskStore, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="broken"), store.scratch(ASSET) as folder:
        (folder / "half").write_text("x", "utf-8")
        raise ValueError("broken")
    assert scratch_folders(tmp_path / "data") == []


def test_verify_reports_a_changed_or_missing_file(store: TaskStore) -> None:
    made = write(store, "k1")
    store.verify(made)
    made.path("deep/more.txt").write_text("mOre", "utf-8")
    with pytest.raises(StorageError, match=r"more\.txt is not what clean_examples wrote"):
        store.verify(made)
    made.path("deep/more.txt").unlink()
    with pytest.raises(StorageError, match=r"more\.txt"):
        store.verify(made)


@pytest.mark.parametrize(
    "raw",
    [
        b"{", b"", b"\xff\x00", b"[]", b"7", b"{}", b"[" * 100_000,
        b'{"content_hash": "0", "files": [], "summary": {}}',
        b'{"content_hash": 1, "files": {}, "summary": {}}',
        b'{"content_hash": "0", "files": {"a": {}}, "summary": {}}',
        b'{"content_hash": "0", "files": {}, "summary": {}, "verdict": {"gate": "x"}}',
    ],
)  # fmt: skip
def test_a_damaged_manifest_is_an_error_with_a_hint(store: TaskStore, raw: bytes) -> None:
    write(store, "k1").path(MANIFEST).write_bytes(raw)
    with pytest.raises(StorageError, match=r"manifest\.json is damaged.*\n.*delete"):
        store.find(ASSET, "k1")
    with pytest.raises(StorageError, match=r"manifest\.json is damaged"):
        list(store.manifests(ASSET))


@pytest.mark.parametrize("raw", [b"", b"\xff\xfe", b"../raw", b"a/b", b"..", b"k1\x00", b"k" * 1000])
def test_a_damaged_pointer_is_an_error_with_a_hint(store: TaskStore, raw: bytes) -> None:
    made = write(store, "k1")
    pointer = made.folder.parent / "current"
    pointer.write_bytes(raw)
    with pytest.raises(StorageError, match=r"current is damaged.*\n.*delete"):
        store.current(ASSET)
    pointer.unlink()  # the hint
    store.point(made)
    assert store.current(ASSET) == made


def test_an_unreadable_file_is_named_and_the_hint_does_not_delete_it(
    store: TaskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = write(store, "k1")
    (made.folder.parent / "current").unlink()
    (made.folder.parent / "current").mkdir()
    with pytest.raises(StorageError, match=r"current cannot be read: Is a directory"):
        store.current(ASSET)

    def refused(*_: object, **__: object) -> str:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(type(store.root), "read_text", refused)
    with pytest.raises(StorageError, match=r"manifest\.json cannot be read: Permission denied") as caught:
        store.find(ASSET, "k1")
    assert isinstance(caught.value.__cause__, PermissionError) and "delete" not in str(caught.value)


def test_a_damaged_file_of_an_artifact_is_named(store: TaskStore) -> None:
    made = write(store, "k1", '{"id": "a"}\n')
    with pytest.raises(StorageError, match=r"examples\.jsonl is damaged: there is no 'messages'"):
        list(made.examples())


def test_a_missing_file_of_an_artifact_is_named_with_a_hint(store: TaskStore) -> None:
    made = write(store, "k1")
    with pytest.raises(StorageError, match=r"report\.json is missing\n.*delete .*k1 and run again"):
        made.json("report.json")
    made.path("examples.jsonl").unlink()
    with pytest.raises(StorageError, match=r"examples\.jsonl is missing\n.*delete .*k1 and run again"):
        list(made.examples())
    with pytest.raises(StorageError, match=r"stat is missing: there is a file where its folder should be\n.*delete"):
        made.json("manifest.json/stat")


@pytest.mark.parametrize("name", ["examples.jsonl", "deep/more.txt"])
def test_an_artifact_with_a_missing_file_counts_as_not_made(store: TaskStore, name: str) -> None:
    made = write(store, "k1")
    made.path(name).unlink()
    assert store.find(ASSET, "k1") is None and store.current(ASSET) is None
    assert store.by_content(ASSET, made.content_hash) is None
    assert write(store, "k1") == made == store.current(ASSET)


def test_an_incomplete_copy_from_an_object_store_is_fetched_again(tmp_path: Path) -> None:
    root = UPath(f"memory://{tmp_path.name}_copy")
    store = TaskStore("tickets", root)
    made = write(store, "k1", "one")
    made.path("examples.jsonl").unlink()
    found = store.find(ASSET, "k1")
    assert found is not None and found.path("examples.jsonl").read_text("utf-8") == "one"
    found.path("examples.jsonl").unlink()
    (root / "tickets/02_clean/clean_examples/k1/examples.jsonl").unlink()
    assert store.find(ASSET, "k1") is None


def test_an_object_store_holds_artifacts_like_a_folder(tmp_path: Path) -> None:
    root = UPath(f"memory://{tmp_path.name}")
    store = TaskStore("tickets", root)
    assert not store.is_local
    assert store.current(ASSET) is None
    first, second = write(store, "k1", "one"), write(store, "k2", "two")
    assert (root / "tickets/02_clean/clean_examples/k1/deep/more.txt").read_text() == "more"
    elsewhere = TaskStore("tickets", root)
    assert elsewhere.current(ASSET) == second
    found = elsewhere.by_content(ASSET, first.content_hash)
    assert found is not None
    assert found.path("examples.jsonl").read_text("utf-8") == "one"  # fetched to this machine
    elsewhere.verify(found)
    assert write(store, "k1", "three").content_hash != first.content_hash  # a forced run of the same work
    remade = elsewhere.latest(ASSET, "k1")
    assert remade is not None and remade.path("examples.jsonl").read_text("utf-8") == "three"


def test_write_atomic_replaces_the_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deployment_state.json"
    stores.write_atomic(path, "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"no room left to write .*deployment_state\.json.*GB free"):
        stores.write_atomic(path, "new")
    assert path.read_text("utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_waiting_for_a_lock_is_logged_once_and_can_be_canceled() -> None:
    class Waiting(Silent):
        def __init__(self) -> None:
            self.messages: list[str] = []
            self.calls = 0

        def log(self, text: str) -> None:
            self.messages.append(text)

        def alive(self) -> None:
            self.calls += 1
            if self.calls == 2:
                raise JobCanceled("stopped")

    report = Waiting()
    with (
        stores.machine_lock("compute", Silent(), ""),
        pytest.raises(JobCanceled),
        stores.machine_lock("compute", report, "another job is running"),
    ):
        pytest.fail("two had the lock")
    assert report.messages == ["another job is running"]


def test_a_lock_is_released_when_its_holder_ends() -> None:
    held = threading.Event()

    def hold() -> None:
        with stores.machine_lock("compute", Silent(), ""):
            held.set()
            time.sleep(0.3)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    start = time.monotonic()
    with stores.machine_lock("compute", Silent(), ""):
        assert time.monotonic() - start > 0.1
    holder.join()


def test_tasks_are_the_folders_with_a_declaration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_DATA", str(tmp_path / "tasks"))
    assert stores.task_names() == []
    for name in ("b", "a", "none"):
        (tmp_path / "tasks" / name).mkdir(parents=True)
        if name != "none":
            (tmp_path / "tasks" / name / "task.yaml").touch()
    assert stores.task_names() == ["a", "b"]


def test_an_unreadable_folder_is_a_task_only_if_its_name_is_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_DATA", str(tmp_path))
    for name in ("lost+found", "locked"):
        (tmp_path / name).symlink_to(name)  # a circular link, which not even root can read
    for name in (".#README.md", "gone"):
        (tmp_path / name).symlink_to("user@host.1234:1700000000")  # what Emacs makes while a file is edited
    (tmp_path / "My Task").mkdir()
    (tmp_path / "My Task" / "task.yaml").touch()
    assert stores.task_names() == ["My Task", "gone", "locked"]


def test_an_invalid_data_root_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_DATA", str(tmp_path / "tasks"))
    (tmp_path / "tasks").symlink_to(tmp_path / "gone")
    with pytest.raises(StorageError, match=r"tasks cannot be read: No such file"):
        stores.task_names()
    (tmp_path / "gone").write_text("a file")
    with pytest.raises(StorageError, match=r"tasks cannot be read: Not a directory"):
        stores.task_names()


def test_a_verdict_is_valid_only_for_the_data_that_was_checked(store: TaskStore) -> None:
    data = write(store, "k1", "data")

    def gate(passed: bool, about: str) -> Artifact:
        verdict = Verdict("data_quality", passed, about, "94 % of 100 rows")
        return Artifact("data_quality", "k", "c", Path(), {"verdict": verdict.to_json()})

    assert require_verdict(gate(True, data.content_hash), "data_quality", data).asset == "data_quality"
    with pytest.raises(GateRefused, match="Gate data_quality failed for clean_examples: 94 % of 100 rows"):
        require_verdict(gate(False, data.content_hash), "data_quality", data)
    with pytest.raises(GateRefused, match="checked other data"):
        require_verdict(gate(True, "another"), "data_quality", data)
    with pytest.raises(GateRefused, match="has no verdict"):
        require_verdict(None, "data_quality", data)
