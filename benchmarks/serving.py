"""Measures the endpoint against FastAPI with transformers' `generate`, one request at a time (the peer).

    python benchmarks/serving.py              # a table; two to four minutes on two cores
    python benchmarks/serving.py --json       # and one line of figures at the end

Same machine, same call, both over HTTP on loopback, each in its own process: SmolLM2-135M-Instruct in fp32 with the
same LoRA adapter (r = 16 on all linear layers, unmerged, small random weights: speed does not depend on them), the
sample task's system prompt and its customers' messages, greedy decoding, at most 24 tokens. Rounds of both alternate;
figures are the median over the rounds, with the lowest and the highest. Not measured: time to first token (the peer
does not stream), other engines. The file is longer than 250 lines because it holds the peer as well.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
from machine import machine
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
TASK = "support_tickets"
TOKENS = 24
CLIENTS = (1, 8)
REQUESTS = {1: 3, 8: 8}
ROUNDS = 3
KEY = "key-of-the-benchmark"
PEER = "FastAPI + generate"
SERVERS = ("endpoint", PEER)


@dataclass(frozen=True)
class Measurement:
    """One round: latencies in seconds, answer tokens per second over the whole round."""

    p50: float
    p95: float
    tokens_per_second: float


# what is served ---------------------------------------------------------------------------------------------


def prepare(scratch: Path) -> tuple[Path, Path, str]:
    """Write a deployment to `scratch`, as the pipeline does. Returns the folders of base model and adapter, and the
    system prompt."""
    from finetune_pipeline.config import load_task
    from finetune_pipeline.models import model_source
    from finetune_pipeline.records import Silent
    from finetune_pipeline.serve import deployment_state, transitions
    from finetune_pipeline.serve.deployment_state import Version
    from finetune_pipeline.store import TaskStore, models_folder

    task = load_task(ROOT / "data" / TASK)
    folder, facts = model_source.prepare(task.base, TASK, Silent())
    (scratch / "home").mkdir()
    (scratch / "home" / "models").symlink_to(models_folder())
    os.environ["FINETUNE_HOME"] = str(scratch / "home")  # keeps the real logs and locks unchanged
    os.environ["FINETUNE_DATA"] = str(scratch / "data")
    (scratch / "data" / TASK).mkdir(parents=True)
    (scratch / "data" / TASK / "task.yaml").write_text((ROOT / "data" / TASK / "task.yaml").read_text("utf-8"), "utf-8")
    store = TaskStore(TASK)
    declared = {
        name: getattr(task, name).model_dump(mode="json", by_alias=True) for name in ("base", "prompt", "answer")
    }
    manifest = {"summary": {}, "inputs": {}, "declaration": declared, "verdict": None}
    with store.scratch("base_model") as out:
        (out / "base_model.json").write_text(json.dumps(facts), "utf-8")
        base = store.commit("base_model", "benchmark", out, manifest)
    with store.scratch("adapter") as out:
        _random_adapter(folder, out)
        adapter = store.commit("adapter", "benchmark", out, {**manifest, "inputs": {"base_model": base.content_hash}})
    version = Version(
        version=1, adapter=adapter.content_hash, adapter_key=adapter.key, base=base.content_hash,
        registered="-", evaluation="-",
        served_as=TASK, max_new_tokens=TOKENS, on_invalid="flag", log_text=False, at="2026-01-01T00:00:00+00:00",
    )  # fmt: skip
    deployment_state.update(store, lambda state: transitions.promote(state, version, state.champion))
    return folder, adapter.folder, task.prompt.system


def _random_adapter(base: Path, folder: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data = 0.002 * torch.randn(weight.shape, generator=generator)
    model.save_pretrained(folder)


def messages() -> list[str]:
    with (ROOT / "data" / TASK / "raw" / "shop_export.csv").open(encoding="utf-8", errors="replace") as file:
        texts = [row["message"] for row in csv.DictReader(file) if row.get("message")]
    return [text for text in texts if 20 < len(text) < 300]


# the peer ---------------------------------------------------------------------------------------------------


def peer(base: Path, adapter: Path, port: int, parent: int) -> None:
    """FastAPI and `generate`, as in the usual tutorial."""
    import threading

    import torch
    import uvicorn
    from fastapi import Body, FastAPI
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from finetune_pipeline.backends.worker import end_with

    end_with(parent)
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    model: Any = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(adapter)
    )
    model.eval()
    lock = threading.Lock()
    app = FastAPI()

    @app.post("/v1/chat/completions")
    def completions(body: dict[str, Any] = Body()) -> dict[str, Any]:  # noqa: B008 - how FastAPI declares a body
        text = tokenizer.apply_chat_template(body["messages"], tokenize=False, add_generation_prompt=True)
        inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        with lock, torch.inference_mode():
            out = model.generate(**inputs, max_new_tokens=body["max_tokens"], do_sample=False)
        new = out[0, inputs["input_ids"].shape[1] :]
        message = {"role": "assistant", "content": tokenizer.decode(new, skip_special_tokens=True)}
        return {"choices": [{"message": message}], "usage": {"completion_tokens": len(new)}}

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")


# measuring --------------------------------------------------------------------------------------------------


@contextmanager
def serving(command: Sequence[str], url: str, log: Path) -> Iterator[None]:
    from finetune_pipeline.backends.local import end_group, job_environment

    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=job_environment(), start_new_session=True
        )
    try:
        deadline = time.monotonic() + 180
        while True:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{command} did not start:\n{log.read_text('utf-8', 'replace')[-2000:]}")
            try:
                if httpx.post(
                    f"{url}/v1/chat/completions", json=_body("hello", 4), headers=_HEADERS, timeout=60
                ).is_success:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.3)
        yield
    finally:
        end_group(process, 5)


_HEADERS = {"authorization": f"Bearer {KEY}"}
_SYSTEM: list[dict[str, str]] = []


def _body(text: str, tokens: int = TOKENS) -> dict[str, Any]:
    return {
        "model": TASK,
        "messages": [*_SYSTEM, {"role": "user", "content": text}],
        "max_tokens": tokens,
        "temperature": 0,
    }


async def measure(url: str, clients: int, texts: Sequence[str]) -> Measurement:
    """Send all of `texts`, with `clients` concurrent clients."""
    latencies: list[float] = []
    tokens = 0
    queue = list(texts)

    async def client(http: httpx.AsyncClient) -> None:
        nonlocal tokens
        while queue:
            text = queue.pop()
            start = time.perf_counter()
            response = await http.post(f"{url}/v1/chat/completions", json=_body(text), headers=_HEADERS)
            response.raise_for_status()
            latencies.append(time.perf_counter() - start)
            tokens += response.json()["usage"]["completion_tokens"]

    began = time.perf_counter()
    async with httpx.AsyncClient(timeout=300) as http:
        await asyncio.gather(*(client(http) for _ in range(clients)))
    ordered = sorted(latencies)
    p95 = ordered[min(len(ordered) - 1, round(0.95 * len(ordered)))]
    return Measurement(statistics.median(ordered), p95, tokens / (time.perf_counter() - began))


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def run() -> dict[str, dict[int, list[Measurement]]]:
    measurements: dict[str, dict[int, list[Measurement]]] = {name: {n: [] for n in CLIENTS} for name in SERVERS}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        os.environ["FINETUNE_API_KEYS"] = f"benchmark:{KEY}"
        os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS") or str(os.cpu_count() or 1)
        base, adapter, system = prepare(scratch)
        _SYSTEM.append({"role": "system", "content": system})
        urls = {name: f"http://127.0.0.1:{free_port()}" for name in SERVERS}
        ports = {name: url.rpartition(":")[2] for name, url in urls.items()}
        endpoint_command = [
            sys.executable,
            "-m",
            "finetune_pipeline.serve.server",
            "--port",
            ports["endpoint"],
            "--with-parent",
            str(os.getpid()),
        ]
        peer_command = [sys.executable, __file__, "--peer", str(base), str(adapter), ports[PEER], str(os.getpid())]
        texts = messages()
        with (
            serving(endpoint_command, urls["endpoint"], scratch / "endpoint.log"),
            serving(peer_command, urls[PEER], scratch / "peer.log"),
        ):
            for number in range(ROUNDS):
                for clients in CLIENTS:
                    prompts = texts[number * 40 :][: REQUESTS[clients]]
                    for name in SERVERS if number % 2 else SERVERS[::-1]:
                        measurements[name][clients].append(asyncio.run(measure(urls[name], clients, prompts)))
    return measurements


# reporting --------------------------------------------------------------------------------------------------


def summary(measurements: dict[str, dict[int, list[Measurement]]]) -> dict[str, Any]:
    """Medians over the rounds, and the ratio of the two servers per round: lowest, median, highest."""
    figures: dict[str, Any] = {"machine": machine(), "rounds": ROUNDS}
    for clients in CLIENTS:
        rows = {name: measurements[name][clients] for name in SERVERS}
        for server, rounds in rows.items():
            medians = {name: statistics.median(asdict(r)[name] for r in rounds) for name in asdict(rounds[0])}
            figures[f"{server}, {clients} clients"] = {name: round(value, 3) for name, value in medians.items()}
        pairs = list(zip(rows["endpoint"], rows[PEER], strict=True))
        speed = sorted(a.tokens_per_second / b.tokens_per_second for a, b in pairs)
        figures[f"ratio, {clients} clients"] = [round(x, 2) for x in (speed[0], statistics.median(speed), speed[-1])]
    return figures


def table(figures: dict[str, Any]) -> Table:
    result = Table(
        title=f"SmolLM2-135M with LoRA, {figures['machine']}, {figures['rounds']} rounds", title_justify="left"
    )
    for name in ("clients", "server", "latency p50", "latency p95", "tokens/s", "tokens/s ratio"):
        result.add_column(name, justify="left" if name == "server" else "right")
    for clients in CLIENTS:
        low, median, high = figures[f"ratio, {clients} clients"]
        for server in SERVERS:
            m = figures[f"{server}, {clients} clients"]
            ratio = f"{median:.1f} x ({low:.1f} to {high:.1f})" if server == "endpoint" else ""
            speed = f"{m['tokens_per_second']:.0f}"
            result.add_row(str(clients), server, f"{m['p50']:.2f} s", f"{m['p95']:.2f} s", speed, ratio)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object of figures on the last line")
    parser.add_argument("--peer", nargs=4, metavar=("BASE", "ADAPTER", "PORT", "PARENT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        peer(Path(arguments.peer[0]), Path(arguments.peer[1]), int(arguments.peer[2]), int(arguments.peer[3]))
        return
    figures = summary(run())
    Console().print(table(figures))
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
