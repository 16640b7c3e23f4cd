"""A thread that delivers a journal while its run goes on; one more samples the machine's metrics for it.

    sender = Sender(lambda: deliver(journal, with_files=False))
    sender.wake()                  # there is a new record; returns immediately
    idle = sender.close()          # False: a request hangs

What MLflow does not accept stays in the journal and is tried again every RETRY_SECONDS, so that a training never waits
for MLflow. The names of the machine's metrics, and how they are measured, are MLflow's own ("system/cpu_…").
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from finetune_pipeline.errors import FinetuneError
from finetune_pipeline.tracking.client import error_line, mlflow_errors

RETRY_SECONDS = 15.0
CLOSE_TIMEOUT_SECONDS = 60.0  # for a server that hangs
SAMPLE_SECONDS = 10.0
log = logging.getLogger("finetune.tracking")


class Sender:
    """`deliver` is called from the thread; what it raises is logged once, until it succeeds again."""

    def __init__(self, deliver: Callable[[], object]) -> None:
        self._deliver = deliver
        self._changed = threading.Condition()
        self._new = self._closing = self._away = False
        self._thread = threading.Thread(target=self._run, name="mlflow-sender", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Say that there is something to deliver."""
        with self._changed:
            self._new = True
            self._changed.notify()

    def close(self) -> bool:
        """End the thread; whether it has ended within CLOSE_TIMEOUT_SECONDS."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(CLOSE_TIMEOUT_SECONDS)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._new or self._closing)
                if self._closing:
                    return
                self._new = False
            if not self._try():
                with self._changed:
                    self._new = True
                    self._changed.wait_for(lambda: self._closing, RETRY_SECONDS)

    def _try(self) -> bool:
        try:
            self._deliver()
        except mlflow_errors() as error:
            self._note(error_line(error))
            return False
        except FinetuneError as error:
            self._note(error.message)
            return False
        self._away = False
        return True

    def _note(self, reason: str) -> None:
        if not self._away:
            log.warning("MLflow did not accept a record, and the run continues: %s", reason)
        self._away = True


class MachineMetrics:
    """Samples processor, memory, disk, network and GPU every SAMPLE_SECONDS; `put` gets the values and the number of
    the sample."""

    def __init__(self, put: Callable[[Mapping[str, float], int], None]) -> None:
        self._put, self._ended = put, threading.Event()
        self._thread = threading.Thread(target=self._run, name="machine-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        monitors, sample = _monitors(), 0
        while not self._ended.wait(SAMPLE_SECONDS):
            for monitor in monitors:
                monitor.collect_metrics()
            values = {f"system/{k}": v for monitor in monitors for k, v in monitor.aggregate_metrics().items()}
            self._put(values, sample)
            sample += 1
            for monitor in monitors:
                monitor.clear_metrics()


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    found = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    with suppress(ImportError, RuntimeError):  # nvidia-ml-py is not installed, or there is no driver
        found.append(GPUMonitor())
    return found


def now_ms() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)
