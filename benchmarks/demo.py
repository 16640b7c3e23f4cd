"""The sample task from nothing to the endpoint, as `make demo` runs it: seconds and peak memory per asset, and the
orchestrator's share of the whole.

    python benchmarks/demo.py [--json] [--keep-models] [--task support_tickets]

Everything is made in a temporary folder. The peer is the work itself: the sum of the seconds that the assets' own
functions took, as their manifests record it; what the whole command took beyond that is Dagster, imports, hashing and
the terminal. The second figure is the same command again, with nothing changed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from finetune_pipeline.graph import STEPS

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object of figures on the last line")
    parser.add_argument("--keep-models", action="store_true", help="use the converted base model of this checkout")
    parser.add_argument("--task", default="support_tickets")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="demo-") as folder:
        figures = measure(options.task, Path(folder), options.keep_models)
    show(figures)
    if options.json:
        print(json.dumps(figures))


def measure(task: str, folder: Path, keep_models: bool) -> dict[str, Any]:
    """Run the command twice in `folder`; seconds per asset from the manifests, whole seconds from the clock."""
    (folder / "data").mkdir()
    shutil.copytree(ROOT / "data" / task, folder / "data" / task, ignore=shutil.ignore_patterns("[0-9]_*", ".work"))
    env = {**os.environ, "FINETUNE_DATA": str(folder / "data"), "FINETUNE_HOME": str(folder / "home")}
    env.pop("DAGSTER_HOME", None)
    if keep_models:
        (folder / "home").mkdir()
        (folder / "home" / "models").symlink_to(ROOT / ".finetune" / "models")
    first, second = (timed(task, env) for _ in range(2))
    assets = []
    for step in STEPS:
        for manifest in (folder / "data" / task / step.folder / step.asset).glob("*/manifest.json"):
            made = json.loads(manifest.read_text("utf-8"))
            assets.append({"asset": step.asset, "seconds": made["seconds"], "peak_mb": made["peak_mb"]})
    work = sum(asset["seconds"] for asset in assets)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    return {
        "machine": machine,
        "assets": assets,
        "seconds": first,
        "work_seconds": round(work, 1),
        "orchestrator_share": round(1 - work / first, 3),
        "again_seconds": second,
    }


def timed(task: str, env: dict[str, str]) -> float:
    start = time.perf_counter()
    command = [sys.executable, "-m", "finetune_pipeline.cli", "run", task]
    subprocess.run(command, env=env, cwd=ROOT, check=True, stdout=sys.stderr)
    return round(time.perf_counter() - start, 1)


def show(figures: dict[str, Any]) -> None:
    print(f"{'asset':<20}{'seconds':>9}{'peak MB':>9}   ({figures['machine']})")
    for asset in figures["assets"]:
        print(f"{asset['asset']:<20}{asset['seconds']:>9.1f}{asset['peak_mb']:>9}")
    print(f"{'all assets':<20}{figures['work_seconds']:>9.1f}")
    print(f"{'whole command':<20}{figures['seconds']:>9.1f}   orchestrator's share {figures['orchestrator_share']:.1%}")
    print(f"{'again, unchanged':<20}{figures['again_seconds']:>9.1f}")


if __name__ == "__main__":
    main()
