"""The documentation is true: its links lead somewhere, its commands run, and its Python examples run.

The commands of a page run in its order, in a folder like the repository, with a tiny model and a task that is deployed.
A server has to answer, and is stopped then; what asks the endpoint runs beside `finetune serve`. What `make` would do
is printed by `make -n`, since `make demo` is a quarter of an hour of training.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from itertools import groupby
from pathlib import Path

import httpx
import pytest
import yaml

from finetune_pipeline.cli.commands import main
from finetune_pipeline_tests.serve.conftest import make_adapter as make_adapter
from finetune_pipeline_tests.serve.deployment import declare
from finetune_pipeline_tests.test_journey import rows

ROOT = Path(__file__).parents[1]
HISTORY = {"CHANGELOG.md", "decisions.md"}  # what was true when it was written
PAGES = sorted(
    {*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "data" / "README.md", ROOT / "examples" / "README.md"}
)
FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^ *```", re.M | re.S)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
INLINE = re.compile(r"`finetune ([a-z]+)[^`]*`")
PORTS = {"3000": "FINETUNE_DAGSTER_URL", "8310": "FINETUNE_DESK_URL", "8311": "FINETUNE_ENDPOINT_URL"}
PORTS |= {"8312": "FINETUNE_MLFLOW_URL"}
# The servers, and the ports on which each has to answer; the daemon has none: it has to say that it runs.
SERVERS = {
    "finetune up": ("3000", "8310", "8311", "8312"),
    "make up": (),
    "dagster dev": ("3000",),
    "dagster-webserver": ("3000",),
    "dagster-daemon": (),
    "mlflow server": ("8312",),
    "finetune desk": ("8310",),
    "finetune serve": ("8311",),
}
BASH = shutil.which("bash") or "bash"
WAITS_FOR_PEOPLE = 5  # the exit code of `finetune run` where the experts have to review first


def blocks(page: Path, language: str) -> Iterator[str]:
    for match in FENCE.finditer(page.read_text("utf-8")):
        if match[2] == language:
            yield "\n".join(line.removeprefix(match[1]) for line in match[3].splitlines())


def commands(page: Path) -> list[str]:
    """The commands of a page in its order, without their comments."""
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    return [command for line in lines if (command := re.sub(r"\s+#.*|^#.*", "", line).strip())]


CURRENT = [page for page in PAGES if page.name not in HISTORY]
WITH_COMMANDS = [page for page in CURRENT if commands(page)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text("utf-8")):
        assert target.startswith(("http", "mailto:")) or (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_page_is_reached_from_the_readme() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert [page.name for page in ROOT.glob("docs/*.md") if f"docs/{page.name}" not in text] == []


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: page.name)
def test_commands_within_a_sentence_exist(page: Path) -> None:
    assert [name for name in INLINE.findall(page.read_text("utf-8")) if name not in main.commands] == []


class World:
    """A folder like the repository, with the task `support_tickets` in its second version and rows for `my_task`."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model = folder, model
        self.ports = {port: free_port() for port in PORTS}
        self.env = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "DAGSTER_HOME": str(folder / ".finetune" / "dagster"),
            "FINETUNE_NEW_PASSWORD": "a long password",
            **{name: f"http://127.0.0.1:{self.ports[port]}" for port, name in PORTS.items()},
        }
        for name in ("MLFLOW_TRACKING_URI", "FINETUNE_DATA", "FINETUNE_HOME"):
            self.env.pop(name, None)

    def run(self, command: str) -> None:
        """Run one command of the documentation. AssertionError with its output when it fails."""
        command = self.on_free_ports(command)
        server = next((name for name in SERVERS if command.startswith(name)), None)
        if command.startswith("make "):
            self.shell(f"make -n -C {ROOT} {command.removeprefix('make ')}")
        elif server:
            with self.serving(command, SERVERS[server]):
                pass
        else:
            self.shell(command, (0, WAITS_FOR_PEOPLE) if command.startswith("finetune run") else (0,))
        if command.startswith("finetune init"):
            self.make_tiny("my_task")

    def run_python(self, code: str) -> None:
        path = self.folder / "example.py"
        path.write_text(self.on_free_ports(code), "utf-8")
        with self.serving("finetune serve", ("8311",)) if "openai" in code else nullcontext():
            self.shell(f"{sys.executable} example.py")

    def on_free_ports(self, text: str) -> str:
        for port, free in self.ports.items():
            text = re.sub(rf"\b{port}\b", str(free), text)
        return text

    def shell(self, command: str, expected: tuple[int, ...] = (0,)) -> None:
        done = subprocess.run(
            [BASH, "-c", command], cwd=self.folder, env=self.env, capture_output=True, text=True, check=False
        )
        assert done.returncode in expected, f"`{command}` ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"

    @contextmanager
    def serving(self, command: str, ports: tuple[str, ...]) -> Iterator[None]:
        """Start a server, wait until it answers on all its ports, and stop it at the end."""
        log = self.folder / "server.log"
        if command.startswith("dagster dev"):
            command += f" -p {self.ports['3000']}"  # a free port, where a person has the usual one
        with log.open("w") as out:
            process = subprocess.Popen(
                [BASH, "-c", f"exec {command}"], cwd=self.folder, env=self.env, stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip
        try:
            while not (all(map(self.answers, ports)) if ports else "daemon" in log.read_text("utf-8").lower()):
                assert process.poll() is None, f"`{command}` ended:\n{log.read_text('utf-8')[-3000:]}"
                time.sleep(0.2)
            yield
        finally:
            stop(process)

    def answers(self, port: str) -> bool:
        """Whether the server on this port answers; the endpoint, once its models are loaded."""
        try:
            path = "/health" if port == "8311" else "/"
            answer = httpx.get(f"http://127.0.0.1:{self.ports[port]}{path}", timeout=30)
        except httpx.HTTPError:
            return False
        return answer.status_code < 500 and (port != "8311" or answer.json()["status"] != "starting")

    def make_tiny(self, name: str) -> None:
        """What a person may change in a declaration: another base model, and bounds for few rows."""
        path = self.folder / "data" / name / "task.yaml"
        declared = yaml.safe_load(path.read_text("utf-8"))
        declared |= {"base": {"path": str(self.model), "license": "apache-2.0"}, "quality": {"min_rows": 50}}
        path.write_text(yaml.safe_dump(declared), "utf-8")


def stop(process: subprocess.Popen[bytes]) -> None:
    """As Ctrl-C does, twice where the first one meets a server that is still starting (`dagster dev` may then go on);
    how our own servers stop is tested beside them."""
    for sign in (signal.SIGINT, signal.SIGINT, signal.SIGKILL):
        with suppress(ProcessLookupError):  # the group has ended
            os.killpg(process.pid, sign)
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
            return


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def world(
    tmp_path: Path, tiny_model: Path, make_adapter: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    made = World(tmp_path, tiny_model)
    for name in ("workspace.yaml", "dagster.yaml", "Makefile"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    with (tmp_path / "my.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [("text", "category", "label"), *((text, color, color) for text, color in rows(260))]
        )
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path / ".finetune"))
    monkeypatch.setenv("FINETUNE_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    task = declare(tmp_path / "data", "support_tickets", tiny_model)
    for number in (1, 2):
        task.promote(number, make_adapter(number))
    yield made


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.name)
def test_the_commands_of_a_page_run(page: Path, world: World) -> None:
    for asks, group in groupby(commands(page), lambda command: command.startswith("curl ")):
        with world.serving("finetune serve", ("8311",)) if asks else nullcontext():
            for command in group:
                world.run(command.replace("curl ", "curl --fail "))


@pytest.mark.parametrize("page", [page for page in CURRENT if list(blocks(page, "python"))], ids=lambda page: page.name)
def test_the_python_examples_of_a_page_run(page: Path, world: World) -> None:
    for code in blocks(page, "python"):
        world.run_python(code)
