"""Run a job where the deployment says: one interface over local, torchrun, Ray and Kubernetes.

    backend = backend_for(task.train.backend)
    result = run("finetune_pipeline.train.job", spec, TrainingResult, folder, report, backend)

Whatever the backend: the description and the events are files of the job's folder (job_files.py), the result and the
error of the job are those of the caller, and nothing of the job is left when this returns or raises. On several
machines the folder is on a volume that all of them share, under the same path.
"""

from __future__ import annotations

import shutil
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from finetune_pipeline.backends import kubernetes, local, ray, torchrun
from finetune_pipeline.backends.follow import Started, follow
from finetune_pipeline.backends.job_data import JobData
from finetune_pipeline.backends.job_files import JobFiles
from finetune_pipeline.backends.node import Launch
from finetune_pipeline.config import Backend
from finetune_pipeline.records import Reporter

Result = TypeVar("Result", bound=JobData)
Starter = Callable[[JobFiles, Launch, Backend, Reporter], Started]
ALIVE_SECONDS = 5.0
STARTERS: Mapping[str, Starter] = {"torchrun": torchrun.start, "ray": ray.start, "kubernetes": kubernetes.start}


def run(
    module: str,
    spec: JobData,
    returns: type[Result],
    folder: Path,
    report: Reporter,
    backend: Backend,
    threads: int | None = None,
) -> Result:
    """Run a job on a backend, and return its result. Raises the error that a process of the job raised, TrainingFailed
    when the job ended without one, after the declared number of restarts, and what `report.alive` raises, after the
    end of the job. `threads`: of each process."""
    if backend.kind == "local":
        return local.run(module, spec, returns, folder, report, threads, backend.device)
    launch = Launch(
        module=module,
        id=uuid.uuid4().hex[:12],
        nodes=backend.nodes,
        processes_per_node=backend.processes_per_node,
        max_restarts=backend.max_restarts,
        threads=threads,
        rendezvous=backend.rendezvous,
        device=backend.device,
        leases=backend.kind == "torchrun",
    )
    files = _prepare(folder, spec, launch)
    with _sign_of_life(files.alive):
        job = STARTERS[backend.kind](files, launch, backend, report)
        try:
            return returns.from_json(follow(job, files, report))
        finally:
            job.end()


def _prepare(folder: Path, spec: JobData, launch: Launch) -> JobFiles:
    """The files of this launch, in a folder of its own: processes of an earlier one, which may still end on another
    machine, neither read nor write them. They stop, since their folder is gone."""
    for earlier in folder.glob("launch-*"):
        shutil.rmtree(earlier, ignore_errors=True)
    files = JobFiles(folder.absolute() / f"launch-{launch.id}")
    files.prepare(spec.to_json())
    files.write_launch(launch.to_json())
    return files


@contextmanager
def _sign_of_life(alive: Path) -> Iterator[None]:
    """Touch the file regularly within the block: machines that cannot see this process see the file."""
    ended = threading.Event()

    def touch() -> None:
        while not ended.wait(ALIVE_SECONDS):
            alive.touch()

    alive.touch()
    thread = threading.Thread(target=touch, name="sign-of-life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
