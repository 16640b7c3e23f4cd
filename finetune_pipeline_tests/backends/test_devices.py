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
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,GPU-2,MIG-3")


def test_a_job_gets_particular_devices_and_the_next_one_others() -> None:
    with devices.lease(2, "a.job", Silent()) as first, devices.lease(1, "b.job", Silent()) as second:
        assert (first, second) == (("0", "1"), ("GPU-2",))
        with devices.lease(1, "c.job", Silent()) as third:
            assert third == ("MIG-3",)
    with devices.lease(4, "d.job", Silent()) as all_of_them:
        assert all_of_them == ("0", "1", "GPU-2", "MIG-3")


def test_a_waiting_job_says_what_it_waits_for() -> None:
    log = Log()
    with devices.lease(3, "a.job", Silent()):
        waiting = threading.Thread(target=lambda: devices.lease(2, "b.job", log).__enter__())
        waiting.start()
        assert log.logged.wait(30)
    waiting.join(30)
    assert log.lines[0].startswith("waiting for 2 of 4 GPUs of this machine: 0 is used by a.job (process ")
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
    assert holder.stdout is not None and holder.stdout.readline() == b"0,1,GPU-2,MIG-3\n"
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


def test_the_driver_lists_the_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By UUID: an index depends on CUDA_DEVICE_ORDER. A stand-in for NVIDIA's command, which no CPU machine has."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    command = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    for body, expected in (("echo GPU-5f0c; echo GPU-91ab", ("GPU-5f0c", "GPU-91ab")), ("echo broken; exit 9", ())):
        command.write_text(f"#!/bin/sh\n{body}\n", "utf-8")
        command.chmod(command.stat().st_mode | stat.S_IEXEC)
        assert devices.gpus() == expected
