"""A file is hashed once until it changes, by any number of processes; a change is always detected."""

from __future__ import annotations

import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from finetune_pipeline.store import file_hashes, sha256_file
from finetune_pipeline.store.file_hashes import file_hash

MANY = """
import sys
from pathlib import Path
from finetune_pipeline.store import file_hashes
file_hashes.SETTLED_SECONDS = -1.0
print(*[file_hashes.file_hash(path) for _ in range(3) for path in sorted(Path(sys.argv[1]).iterdir())])
"""


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read to be hashed, in order."""
    found: list[Path] = []

    def reading(path: Path) -> str:
        found.append(path)
        return sha256_file(path)

    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(file_hashes, "SETTLED_SECONDS", -1.0)
    monkeypatch.setattr(file_hashes, "sha256_file", reading)
    return found


def test_an_unchanged_file_is_read_once(tmp_path: Path, read: list[Path]) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"one")
    assert {file_hash(path) for _ in range(3)} == {sha256(b"one").hexdigest()}
    assert read == [path]


def test_a_change_that_keeps_size_and_time_is_detected(tmp_path: Path, read: list[Path]) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"one")
    stat = path.stat()
    first = file_hash(path)
    path.write_bytes(b"two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file_hash(path) == sha256(b"two").hexdigest() != first
    other = tmp_path / "b.csv"
    other.write_bytes(b"six")
    other.replace(path)
    assert file_hash(path) == sha256(b"six").hexdigest()


def test_a_file_that_has_just_changed_is_not_trusted_to_stay(
    tmp_path: Path, read: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_hashes, "SETTLED_SECONDS", 3600.0)
    path = tmp_path / "a.csv"
    path.write_bytes(b"one")
    file_hash(path), file_hash(path)
    assert read == [path, path]


def test_a_damaged_cache_entry_is_ignored(tmp_path: Path, read: list[Path]) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"one")
    file_hash(path)
    (entry,) = (tmp_path / "home" / "hashes").iterdir()
    for damaged in ("", "[]", '{"path": 1}', "\0"):
        entry.write_text(damaged, "utf-8")
        assert file_hash(path) == sha256(b"one").hexdigest()
    assert len(read) == 5


def test_several_processes_use_the_cache_at_the_same_time(tmp_path: Path, read: list[Path]) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number:02}").write_text(str(number), "utf-8")
    right = [sha256(str(number).encode()).hexdigest() for number in range(40)]
    processes = [
        subprocess.Popen([sys.executable, "-c", MANY, str(folder)], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    for process in processes:
        assert process.communicate()[0].split() == right * 3
        assert process.returncode == 0
    assert [file_hash(path) for path in sorted(folder.iterdir())] == right
    assert read == [], "what another process has hashed is not read again"
