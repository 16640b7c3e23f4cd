"""A job of several ranks for the tests of the backends: what it does is named in its description."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from finetune_pipeline import errors
from finetune_pipeline.backends import worker
from finetune_pipeline.backends.job_data import JobData
from finetune_pipeline.records import Reporter
from finetune_pipeline.store.paths import mlflow_uri

STUBBORN = """import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('up', flush=True)
time.sleep(600)"""


@dataclass(frozen=True)
class Ranks(JobData):
    """`do`: what every rank does; `mark`: a folder for what it leaves behind; `rank`: the one that is different."""

    do: str
    mark: Path
    rank: int = 1


@dataclass(frozen=True)
class Seen(JobData):
    rank: int
    size: int
    local_rank: str
    devices: str
    cores: str
    mlflow: str


def _size() -> int:
    return int(os.environ["WORLD_SIZE"])


def _meet(mark: Path, place: worker.Place) -> None:
    """Wait until every rank has come here."""
    (mark / f"met-{place.rank}").touch()
    while len(list(mark.glob("met-*"))) < _size():
        time.sleep(0.05)


def run(spec: Ranks, report: Reporter) -> Seen:
    place = worker.Place.of_environment()
    report.log(f"rank {place.rank} of {_size()}")
    (spec.mark / f"pid-{os.getpid()}").write_text(str(place.rank), "utf-8")
    different = place.rank == spec.rank
    if spec.do == "refuse":
        _meet(spec.mark, place)
    if spec.do in ("refuse", "refuse early") and different:
        raise errors.ModelError("the weights of layer 3 are not numbers", "choose another base model")
    if spec.do == "break" and different:
        raise KeyError("weights")
    if spec.do == "die" and not (spec.mark / "died").exists():
        _meet(spec.mark, place)
        if different:
            (spec.mark / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(2)
        raise RuntimeError("Connection closed by peer")  # as gloo's
    if spec.do == "dies":
        if different:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)
    if spec.do in ("refuse", "refuse early", "break"):
        time.sleep(600)  # as in a collective that waits for the rank that is gone
    if spec.do == "pause":
        time.sleep(8)
    if spec.do == "wait":
        stubborn = subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, start_new_session=True)
        assert stubborn.stdout is not None and stubborn.stdout.readline()
        (spec.mark / f"pid-{stubborn.pid}").touch()
        (spec.mark / f"waiting-{place.rank}").touch()
        try:
            while True:
                report.alive()
                time.sleep(0.05)
        finally:
            (spec.mark / f"checkpoint-{place.rank}").touch()
    if spec.do == "hang":
        (spec.mark / f"waiting-{place.rank}").touch()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    return Seen(
        place.rank,
        _size(),
        os.environ.get("LOCAL_RANK", ""),
        os.environ.get("CUDA_VISIBLE_DEVICES", "unset"),
        os.environ["OMP_NUM_THREADS"],
        mlflow_uri(),
    )


if __name__ == "__main__":
    if os.environ.get("RANK") == os.environ.get("SLOW_RANK", "none"):
        time.sleep(4)  # as a machine that starts Python slowly
    worker.main(run, Ranks)
