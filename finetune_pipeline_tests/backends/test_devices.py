"""Leases of devices: particular GPUs, one order of arrival, freed by the operating system; with real processes."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from finetune_pipeline import errors
from finetune_pipeline.backends import devices
from finetune_pipeline.records import Silent

HOLD = (
    "import sys, time; from finetune_pipeline.backends.devices import lease; "
    "from finetune_pipeline.records import SILENT\n"
    "with lease(int(sys.argv[1]), 'a.job', SILENT) as held:\n    print(','.join(held), flush=True)\n    time.sleep(600)"
)


class Log(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.logged = threading.Event()

    def log(self, text: str) -> None:
        self.lines.append(text)
        self.logged.set()


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-0,GPU-1,GPU-2,MIG-3")


def test_a_job_gets_particular_devices_and_the_next_one_others() -> None:
    with devices.lease(2, "a.job", Silent()) as first, devices.lease(1, "b.job", Silent()) as second:
        assert (first, second) == (("GPU-0", "GPU-1"), ("GPU-2",))
        with devices.lease(1, "c.job", Silent()) as third:
            assert third == ("MIG-3",)
    with devices.lease(4, "d.job", Silent()) as all_of_them:
        assert all_of_them == ("GPU-0", "GPU-1", "GPU-2", "MIG-3")


def test_a_waiting_job_says_what_it_waits_for() -> None:
    log = Log()
    with devices.lease(3, "a.job", Silent()):
        waiting = threading.Thread(target=lambda: devices.lease(2, "b.job", log).__enter__())
        waiting.start()
        assert log.logged.wait(30)
    waiting.join(30)
    assert log.lines[0].startswith("waiting for 2 of 4 GPUs of this machine: GPU-0 is used by a.job (process ")
    assert "; GPU-2 is used by a.job" in log.lines[0] and "MIG-3" not in log.lines[0]


def test_jobs_get_devices_in_the_order_in_which_they_came() -> None:
    """A job that asks for one device does not pass one that waits for four."""
    order: list[str] = []
    logs = {"four": Log(), "one": Log()}

    def take(name: str, count: int) -> None:
        with devices.lease(count, name, logs[name]):
            order.append(name)

    threads = [threading.Thread(target=take, args=("four", 4)), threading.Thread(target=take, args=("one", 1))]
    with devices.lease(1, "a.job", Silent()):
        for thread, log in zip(threads, logs.values(), strict=True):
            thread.start()
            assert log.logged.wait(30)
        time.sleep(3 * devices.POLL_SECONDS)  # three devices are free all the time
        assert order == []
        assert "behind 1 other job" in logs["one"].lines[0]
    for thread in threads:
        thread.join(30)
    assert order == ["four", "one"]


def test_a_killed_job_and_a_killed_waiting_job_free_their_places() -> None:
    holder = start(4)
    assert holder.stdout is not None and holder.stdout.readline() == b"GPU-0,GPU-1,GPU-2,MIG-3\n"
    waiting, log = start(1), Log()
    while not log.lines or "behind 1 other job" not in log.lines[-1]:
        with pytest.raises(errors.JobCanceled), devices.lease(1, "b.job", Once(log)):
            pytest.fail("all devices are in use")
    waiting.send_signal(signal.SIGKILL)
    waiting.wait()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with devices.lease(4, "c.job", Silent()) as held:
        assert len(held) == 4


class Once(Silent):
    """Cancels after the first message."""

    def __init__(self, log: Log) -> None:
        self.log = log.log  # type: ignore[method-assign]

    def alive(self) -> None:
        raise errors.JobCanceled("stopped")


def start(count: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", HOLD, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(Path.cwd())})


def test_more_devices_than_the_machine_has_are_refused() -> None:
    with pytest.raises(errors.TrainingFailed, match="asks for 5 GPUs, and 4 of this machine") as caught:
        devices.lease(5, "a.job", Silent()).__enter__()
    assert "processes_per_node" in caught.value.hint


def test_without_a_gpu_the_processor_is_the_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    log = Log()
    with devices.lease(2, "a.job", Silent()) as held:  # two ranks on the processor
        assert held == ()
        with pytest.raises(errors.JobCanceled), devices.lease(1, "b.job", Once(log)):
            pytest.fail("two jobs computed")
    assert log.lines[0].startswith("waiting for the processor of this machine: cpu is used by a.job")
    with pytest.raises(errors.TrainingFailed, match="asks for 1 GPU, and 0"):
        devices.lease(1, "c.job", Silent(), needs_gpu=True).__enter__()


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for NVIDIA's command, which no CPU machine has: a script that the test writes."""
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\necho 0, GPU-5f0c; echo 1, GPU-91ab\n", "utf-8")
    command.chmod(command.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return command


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        (None, ("GPU-5f0c", "GPU-91ab")),
        ("1, 0", ("GPU-91ab", "GPU-5f0c")),
        ("1,GPU-91ab,MIG-3", ("GPU-91ab", "MIG-3")),
        ("", ()),
    ],
)
def test_a_gpu_has_one_name_however_it_is_listed(
    driver: Path, monkeypatch: pytest.MonkeyPatch, allowed: str | None, expected: tuple[str, ...]
) -> None:
    """Its UUID: a lock by index and one by UUID would let two jobs have the same GPU."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    assert devices.gpus() == expected


@pytest.mark.parametrize("allowed", [None, "0"])
@pytest.mark.parametrize(
    ("body", "seconds", "message"),
    [("echo GPU 1 is lost; exit 15", 120.0, "exit code 15: GPU 1 is lost"), ("exec sleep 600", 0.1, "not answered")],
)
def test_gpus_that_are_not_known_are_an_error(
    driver: Path, monkeypatch: pytest.MonkeyPatch, allowed: str | None, body: str, seconds: float, message: str
) -> None:
    """Without a lease, torch would take the first GPU all the same."""
    monkeypatch.setattr(devices, "QUERY_SECONDS", seconds)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    driver.write_text(f"#!/bin/sh\n{body}\n", "utf-8")
    with pytest.raises(errors.TrainingFailed, match=message) as caught:
        devices.lease(1, "a.job", Silent()).__enter__()
    assert "device: cpu" in caught.value.hint
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # as `device: cpu` sets it
    with devices.lease(1, "a.job", Silent()) as held:
        assert held == ()


def test_a_driver_that_is_not_loaded_is_a_machine_without_gpus(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on images for GPUs that run without one: torch finds none either."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    driver.write_text("#!/bin/sh\necho NVIDIA-SMI has failed; exit 9\n", "utf-8")
    with devices.lease(1, "a.job", Silent()) as held:
        assert held == ()


def test_a_job_without_a_gpu_does_not_wait_behind_one_that_waits_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    log, held = Log(), threading.Event()

    def wait_for_gpus() -> None:
        with devices.lease(4, "b.job", log):
            held.set()

    with devices.lease(1, "a.job", Silent()):
        waiting = threading.Thread(target=wait_for_gpus)
        waiting.start()
        assert log.logged.wait(30)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        with devices.lease(1, "c.job", Once(Log())) as leased:
            assert leased == () and not held.is_set()
    waiting.join(30)
    assert held.is_set()
