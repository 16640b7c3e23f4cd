"""The command of a Ray job on several machines: `backends/node.py` on each, as a task with a place of its own.

    python -m finetune_pipeline.backends.ray_nodes <folder>/launch.json <GPUs per machine>

The places are reserved together, or not at all (a placement group), so that two jobs never wait for each other's half.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from finetune_pipeline.backends.node import Launch


def main() -> None:
    """Exits with 0 when every machine's part has ended as it should."""
    import ray
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    path, gpus = Path(sys.argv[1]), int(sys.argv[2])
    launch = Launch.from_json(json.loads(path.read_text("utf-8")))
    ray.init(address="auto", log_to_driver=False)
    place = {"CPU": launch.processes_per_node, **({"GPU": gpus} if gpus else {})}
    group = placement_group([place] * launch.nodes, strategy="STRICT_SPREAD")
    ray.get(group.ready())

    def on(machine: int, function: Any, *arguments: object, cpus: int = 0, gpus: int = 0) -> Any:
        where = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=machine)
        task = ray.remote(function)
        return task.options(scheduling_strategy=where, num_cpus=cpus, num_gpus=gpus, max_retries=0).remote(*arguments)

    rendezvous = ray.get(on(0, _address))
    parts = [
        on(machine, _node, str(path), rendezvous, cpus=launch.processes_per_node, gpus=gpus)
        for machine in range(launch.nodes)
    ]
    sys.exit(max(ray.get(parts)))


def _address() -> str:
    """Host and a free port of this machine."""
    import ray

    host = ray.util.get_node_ip_address()
    with socket.socket() as free:
        free.bind((host, 0))
        return f"{host}:{free.getsockname()[1]}"


def _node(path: str, rendezvous: str) -> int:
    """Run this machine's part; its exit code, or 1 where a signal ended it."""
    command = [sys.executable, "-m", "finetune_pipeline.backends.node", path]
    ended = subprocess.run([*command, "--parent", str(os.getpid()), "--rendezvous", rendezvous], check=False)
    return ended.returncode if ended.returncode >= 0 else 1


if __name__ == "__main__":
    main()
