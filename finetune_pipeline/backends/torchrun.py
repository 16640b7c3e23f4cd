"""`kind: torchrun`: a job of several processes on this machine, and on others that share the job's folder.

Here `backends/node.py` is a child of this process. On each other machine a person or a scheduler (`srun`, `pdsh`)
starts the command that the log shows: the machines find each other at `rendezvous`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil

from finetune_pipeline.backends import local
from finetune_pipeline.backends.job_files import JobFiles, untouched
from finetune_pipeline.backends.node import SILENT_SECONDS, Launch
from finetune_pipeline.backends.progress import GRACE_SECONDS, while_active
from finetune_pipeline.config import Backend
from finetune_pipeline.records import Reporter

SEEN_SECONDS = 2.0


def start(files: JobFiles, launch: Launch, backend: Backend, report: Reporter) -> TorchrunJob:
    """Start this machine's part, and say what to start on the others."""
    if launch.nodes > 1:
        waits = f"machine 1 of {launch.nodes} waits at {launch.rendezvous}"
        report.log(f"{waits}; start on each of the others: {_command(files)}")
    job = local.start(["finetune_pipeline.backends.node", str(files.launch)], files, os.environ)
    return TorchrunJob(files, job, report)


def _command(files: JobFiles) -> str:
    """What starts another machine's part."""
    return f"{sys.executable} -m finetune_pipeline.backends.node {files.launch}"


@dataclass
class TorchrunJob:
    """A job under torch's elastic agent (follow.Started). The agent starts each process as a group of its own, so they
    are remembered while it runs: none may be left when it has ended."""

    files: JobFiles
    agent: local.LocalJob
    report: Reporter
    _silent: dict[str, Callable[[], bool]] = field(default_factory=dict)
    _lost: set[str] = field(default_factory=set)
    _started: set[psutil.Process] = field(default_factory=set)
    _seen: float = 0.0

    def ended(self) -> int | None:
        if time.monotonic() - self._seen > SEEN_SECONDS:
            self._remember()
            self._log_lost()
        return self.agent.ended()

    def end(self) -> None:
        """The processes of every machine may run to their next checkpoint, as long as they are active; then they are
        killed: here by this process, elsewhere by node.py."""
        agent = self.agent.process
        try:
            if agent.poll() is None:
                self._remember()
                self.files.cancel.touch()
                while_active(agent.pid, GRACE_SECONDS, 0.1, lambda: agent.poll() is not None, own=False)
        finally:
            self._remember()
            self.agent.kill()
            local.kill(self._started)

    def _remember(self) -> None:
        self._started |= set(local.descendants(self.agent.process.pid))
        self._seen = time.monotonic()

    def _log_lost(self) -> None:
        """Name each other machine that gives no sign, once: the rest waits for it until it is started again."""
        for host in self.files.hosts():
            silent = self._silent.setdefault(host, untouched(self.files.alive_on(host), SILENT_SECONDS))
            if not silent():
                self._lost.discard(host)
            elif host not in self._lost:
                self._lost.add(host)
                self.report.log(f"the machine {host} gives no sign; start on it or on another: {_command(self.files)}")
