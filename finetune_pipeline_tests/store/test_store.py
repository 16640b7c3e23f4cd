"""Artifacts are there as a whole or not at all, whatever happens to the process that writes them."""

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
from finetune_pipeline.errors import GateRefused, JobCancelled, StorageError
from finetune_pipeline.records import Artifact, Silent, Verdict
from finetune_pipeline.store import MANIFEST, TaskStore, require_verdict

ASSET = "clean_examples"

# A writer that is killed by the system just before or just after the manifest is written.
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


def test_before_anything_was_made_there_is_nothing(store: TaskStore) -> None:
    assert store.current(ASSET) is None
    assert store.find(ASSET, "k1") is None
    assert store.by_content(ASSET, "0" * 16) is None


def test_current_is_what_was_made_or_pointed_to_last(store: TaskStore) -> None:
    first, second = write(store, "k1", "one"), write(store, "k2", "two")
    assert store.current(ASSET) == second
    store.point(first)
    assert store.current(ASSET) == first


def test_the_content_hash_is_that_of_names_and_bytes_alone(store: TaskStore) -> None:
    same, again, other = write(store, "k1", "x"), write(store, "k2", "x"), write(store, "k3", "y")
    assert same.content_hash == again.content_hash != other.content_hash


def test_a_writer_killed_before_the_manifest_leaves_no_artifact(store: TaskStore, tmp_path: Path) -> None:
    killed_writer(tmp_path / "data", before=MANIFEST)
    assert (store.folder(ASSET) / "k1" / "examples.jsonl").exists()  # its files were in place already
    assert store.find(ASSET, "k1") is None
    assert store.current(ASSET) is None
    assert write(store, "k1", "whole").path("examples.jsonl").read_text("utf-8") == "whole"


def test_a_writer_killed_before_the_pointer_leaves_an_artifact_to_be_found(store: TaskStore, tmp_path: Path) -> None:
    killed_writer(tmp_path / "data", before="current")
    found = store.find(ASSET, "k1")
    assert found is not None
    store.verify(found)
    assert store.current(ASSET) is None


def test_the_scratch_folder_of_a_killed_process_is_swept_away(store: TaskStore, tmp_path: Path) -> None:
    code = KILLED.replace("store.commit(", "os.kill(os.getpid(), signal.SIGKILL); (")
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "data"), ""], check=False)
    assert len(scratch_folders(tmp_path / "data")) == 1
    with store.scratch(ASSET) as mine, store.scratch(ASSET) as other:
        assert sorted(scratch_folders(tmp_path / "data")) == sorted([mine, other])  # and a living one is not


def test_scratch_is_gone_when_the_work_fails(store: TaskStore, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="broken"), store.scratch(ASSET) as folder:
        (folder / "half").write_text("x", "utf-8")
        raise ValueError("broken")
    assert scratch_folders(tmp_path / "data") == []


def test_a_damaged_or_missing_file_is_found(store: TaskStore) -> None:
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
def test_a_damaged_manifest_is_an_error_with_a_cure(store: TaskStore, raw: bytes) -> None:
    write(store, "k1").path(MANIFEST).write_bytes(raw)
    with pytest.raises(StorageError, match=r"manifest\.json is damaged.*\n.*delete"):
        store.find(ASSET, "k1")
    with pytest.raises(StorageError, match=r"manifest\.json is damaged"):
        list(store.manifests(ASSET))


@pytest.mark.parametrize("raw", [b"", b"\xff\xfe", b"../raw", b"a/b", b"..", b"k1\x00", b"k" * 1000])
def test_a_damaged_pointer_is_an_error_with_a_cure(store: TaskStore, raw: bytes) -> None:
    made = write(store, "k1")
    pointer = made.folder.parent / "current"
    pointer.write_bytes(raw)
    with pytest.raises(StorageError, match=r"current is damaged.*\n.*delete"):
        store.current(ASSET)
    pointer.unlink()  # the hint
    store.point(made)
    assert store.current(ASSET) == made


def test_a_file_that_cannot_be_read_is_named_and_not_to_be_deleted(
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


def test_a_file_of_an_artifact_that_is_missing_is_named_with_what_to_do(store: TaskStore) -> None:
    made = write(store, "k1")
    with pytest.raises(StorageError, match=r"report\.json is missing\n.*delete .*k1 and run again"):
        made.json("report.json")
    made.path("examples.jsonl").unlink()
    with pytest.raises(StorageError, match=r"examples\.jsonl is missing\n.*delete .*k1 and run again"):
        list(made.examples())
    with pytest.raises(StorageError, match=r"stat is missing: a file stands where its folder should be\n.*delete"):
        made.json("manifest.json/stat")


def test_an_object_store_holds_artifacts_as_a_folder_does(tmp_path: Path) -> None:
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


def test_what_lies_on_an_object_store_has_no_local_root() -> None:
    with pytest.raises(StorageError, match="not on this machine"):
        _ = TaskStore("tickets", UPath("memory://x")).local_root


def test_a_small_file_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "desired.json"
    stores.write_atomic(path, "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"no room left to write .*desired\.json.*GB free"):
        stores.write_atomic(path, "new")
    assert path.read_text("utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_lock_is_waited_for_and_said_once_and_the_wait_can_be_cancelled() -> None:
    class Waiting(Silent):
        def __init__(self) -> None:
            self.said: list[str] = []
            self.asked = 0

        def log(self, text: str) -> None:
            self.said.append(text)

        def alive(self) -> None:
            self.asked += 1
            if self.asked == 2:
                raise JobCancelled("stopped")

    report = Waiting()
    with (
        stores.machine_lock("compute", Silent(), ""),
        pytest.raises(JobCancelled),
        stores.machine_lock("compute", report, "somebody computes"),
    ):
        pytest.fail("two had the lock")
    assert report.said == ["somebody computes"]


def test_a_lock_is_free_when_its_holder_is_gone() -> None:
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


def test_what_cannot_be_looked_into_is_a_task_only_by_a_name_that_a_task_may_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_DATA", str(tmp_path))
    for name in ("lost+found", "locked"):
        (tmp_path / name).symlink_to(name)  # a circle, which nobody can look into, not even root
    for name in (".#README.md", "gone"):
        (tmp_path / name).symlink_to("user@host.1234:1700000000")  # what Emacs makes while a file is edited
    (tmp_path / "My Task").mkdir()
    (tmp_path / "My Task" / "task.yaml").touch()
    assert stores.task_names() == ["My Task", "gone", "locked"]


def test_a_data_root_that_is_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_DATA", str(tmp_path / "tasks"))
    (tmp_path / "tasks").symlink_to(tmp_path / "gone")
    with pytest.raises(StorageError, match=r"tasks cannot be read: No such file"):
        stores.task_names()
    (tmp_path / "gone").write_text("a file")
    with pytest.raises(StorageError, match=r"tasks cannot be read: Not a directory"):
        stores.task_names()


def test_a_verdict_counts_only_for_the_very_data_it_saw(store: TaskStore) -> None:
    data = write(store, "k1", "data")

    def gate(passed: bool, about: str) -> Artifact:
        given = Verdict("data_quality", passed, about, "94 % of 100 rows")
        return Artifact("data_quality", "k", "c", Path(), {"verdict": given.to_json()})

    assert require_verdict(gate(True, data.content_hash), "data_quality", data).asset == "data_quality"
    with pytest.raises(GateRefused, match="refused clean_examples: 94 % of 100 rows"):
        require_verdict(gate(False, data.content_hash), "data_quality", data)
    with pytest.raises(GateRefused, match="judged other data"):
        require_verdict(gate(True, "another"), "data_quality", data)
    with pytest.raises(GateRefused, match="has not judged"):
        require_verdict(None, "data_quality", data)
