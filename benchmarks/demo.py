"""The sample task from nothing to the endpoint, as `make demo` runs it: outcome, seconds and peak memory of each asset.

    python benchmarks/demo.py [--json] [--keep-models] [--task support_tickets]
    python benchmarks/demo.py --repeat 10 [--seed 1] [--precision fp32] [--busy 2]     # fresh seeds, outcomes only

Everything is made in a temporary folder. The peer is the work itself: the sum of the seconds that the assets' own
functions took, as their manifests record it; what the whole command took beyond that is Dagster, imports, hashing and
the terminal. The second figure is the same command again, with nothing changed.

With --repeat each run has its own seeds for split and training (initialization and order): what the decision and the
figures behind it do when nothing but chance changes. --busy runs that many endless loops beside it: the outcome has to
be the same, only later. --precision fp32 trains as a processor without bf16 does.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from machine import machine

from finetune_pipeline.graph import STEPS
from finetune_pipeline.store.paths import stage_folder

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object of figures on the last line")
    parser.add_argument("--keep-models", action="store_true", help="use the converted base model of this checkout")
    parser.add_argument("--task", default="support_tickets")
    parser.add_argument("--repeat", type=int, default=0, metavar="N", help="N runs with fresh seeds; prints outcomes")
    parser.add_argument("--seed", type=int, default=1, help="first seed of --repeat")
    parser.add_argument("--precision", choices=["auto", "bf16", "fp32"], help="of the training; default: as declared")
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="endless loops beside the run")
    options = parser.parse_args()
    with busy(options.busy):
        figures = repeated(options) if options.repeat else once(options)
    if options.json:
        print(json.dumps(figures))


def once(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="demo-") as name:
        folder = prepared(Path(name), options, {})
        first, second = (timed(options.task, folder) for _ in range(2))
        assets, found = made(folder, options.task), outcome(folder, options.task)
    work = sum(asset["seconds"] for asset in assets)
    figures = {
        "machine": machine(),
        "assets": assets,
        "seconds": first,
        "work_seconds": round(work, 1),
        "orchestrator_share": round(1 - work / first, 3),
        "again_seconds": second,
        **found,
    }
    show(figures)
    return figures


def repeated(options: argparse.Namespace) -> dict[str, Any]:
    runs = []
    head = f"{'seed':>4}  {'outcome':<13}{'tuned':>7}{'prompt':>8}{'classical':>11}  {'general loss':<26}"
    print(f"{head}{'parity':>7}{'s':>7}")
    for seed in range(options.seed, options.seed + options.repeat):
        with tempfile.TemporaryDirectory(prefix="demo-") as name:
            folder = prepared(Path(name), options, {"split": {"seed": seed}, "train": {"seed": seed}})
            seconds = timed(options.task, folder)
            run = {"seed": seed, "seconds": seconds, **outcome(folder, options.task)}
        runs.append(run)
        between = f"{run['general_rise']:+.1%} ({run['general_low']:+.1%} to {run['general_high']:+.1%})"
        print(
            f"{seed:>4}  {run['outcome']:<13}{run['tuned']:>7.1%}{run['prompted']:>8.1%}{run['classical']:>11.1%}"
            f"  {between:<26}{run['parity'] or 'none':>7}{seconds:>7.0f}",
            flush=True,
        )
    promoted = sum(run["outcome"] == "PROMOTE" and run["parity"] is not None for run in runs)
    tuned = sorted(run["tuned"] for run in runs)
    print(f"promoted and served {promoted} of {len(runs)}; tuned {statistics.median(tuned):.1%}", end="")
    print(f" ({tuned[0]:.1%} to {tuned[-1]:.1%})   {machine()}")
    return {"machine": machine(), "runs": runs}


def prepared(folder: Path, options: argparse.Namespace, changes: dict[str, dict[str, Any]]) -> Path:
    """A data root and a home of their own in `folder`, with the task's declaration changed."""
    (folder / "data").mkdir()
    target = folder / "data" / options.task
    generated = shutil.ignore_patterns("[0-9][0-9]_*", ".work", "frozen_test.jsonl")
    shutil.copytree(ROOT / "data" / options.task, target, ignore=generated)
    declaration = yaml.safe_load((target / "task.yaml").read_text("utf-8"))
    if options.precision:
        changes = {**changes, "train": {**changes.get("train", {}), "precision": options.precision}}
    for section, values in changes.items():
        declaration[section] = {**declaration.get(section, {}), **values}
    if changes:
        (target / "task.yaml").write_text(yaml.safe_dump(declaration, sort_keys=False, allow_unicode=True), "utf-8")
    if options.keep_models:
        (folder / "home").mkdir()
        (folder / "home" / "models").symlink_to(ROOT / ".finetune" / "models")
    return folder


def timed(task: str, folder: Path) -> float:
    """Seconds of `finetune run`. Exit code 4 (a gate failed, such as the release decision) is an outcome."""
    env = {**os.environ, "FINETUNE_DATA": str(folder / "data"), "FINETUNE_HOME": str(folder / "home")}
    env.pop("DAGSTER_HOME", None)
    start = time.perf_counter()
    command = [sys.executable, "-m", "finetune_pipeline.cli.commands", "run", task]
    code = subprocess.run(command, env=env, cwd=ROOT, check=False, stdout=sys.stderr).returncode
    if code not in (0, 4):
        raise SystemExit(f"`finetune run {task}` ended with exit code {code}")
    return round(time.perf_counter() - start, 1)


def made(folder: Path, task: str) -> list[dict[str, Any]]:
    """Seconds and peak memory of every asset, from the manifests."""
    found = []
    for step in STEPS:
        for manifest in (folder / "data" / task / stage_folder(step.stage) / step.asset).glob("*/manifest.json"):
            facts = json.loads(manifest.read_text("utf-8"))
            found.append({"asset": step.asset, "seconds": facts["seconds"], "peak_mb": facts["peak_mb"]})
    return found


def outcome(folder: Path, task: str) -> dict[str, Any]:
    """What was decided, on which figures, and how many served answers equal the evaluated (None: not deployed)."""
    root = folder / "data" / task
    (decision,) = (root / stage_folder("release") / "release_decision").glob("*/decision.json")
    decided = json.loads(decision.read_text("utf-8"))
    figures, general = decided["figures"], decided["figures"]["findings"]["general"]
    share = {name: rows["exact"] / rows["rows"] for name, rows in figures["variants"].items()}
    deployed = list((root / stage_folder("serve") / "deployed_endpoint").glob("*/endpoint.json"))
    parity = json.loads(deployed[0].read_text("utf-8"))["parity"]["figures"] if deployed else None
    return {
        "outcome": decided["outcome"],
        "tuned": share["tuned"],
        "prompted": share[figures["best_prompted"]],
        "classical": share.get("classical", 0.0),
        "general_rise": general["rise"],
        "general_low": general["low"],
        "general_high": general["high"],
        "parity": f"{parity['equal']}/{parity['rows']}" if parity else None,
    }


@contextmanager
def busy(loops: int) -> Iterator[None]:
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(loops)]
    try:
        yield
    finally:
        for loop in running:
            loop.kill()
            loop.wait()


def show(figures: dict[str, Any]) -> None:
    print(f"{'asset':<20}{'seconds':>9}{'peak MB':>9}   ({figures['machine']})")
    for asset in figures["assets"]:
        print(f"{asset['asset']:<20}{asset['seconds']:>9.1f}{asset['peak_mb']:>9}")
    print(f"{'all assets':<20}{figures['work_seconds']:>9.1f}")
    print(f"{'whole command':<20}{figures['seconds']:>9.1f}   orchestrator's share {figures['orchestrator_share']:.1%}")
    print(f"{'again, unchanged':<20}{figures['again_seconds']:>9.1f}")
    print(
        f"{figures['outcome']}: tuned {figures['tuned']:.1%} exactly right, best prompt {figures['prompted']:.1%}, "
        f"classical {figures['classical']:.1%}; general loss {figures['general_rise']:+.1%}; parity {figures['parity']}"
    )


if __name__ == "__main__":
    main()
