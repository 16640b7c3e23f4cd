"""The sensor that notices new, removed, repaired and broken tasks, evaluated against a real Dagster instance."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import dagster as dg
import pytest
import yaml

from finetune_pipeline.defs.code_location import LOCATION, code_location_sensor

from .conftest import declare

ROOT = Path(__file__).parents[2]


def tick(sensor: dg.SensorDefinition, dagster: dg.DagsterInstance, cursor: str | None = None) -> tuple[str, str | None]:
    """What one tick says, and the cursor it leaves."""
    context = dg.build_sensor_context(instance=dagster, cursor=cursor)
    skip = sensor.evaluate_tick(context)
    assert skip.run_requests == []
    return str(skip.skip_message), skip.cursor


def test_nothing_changed(data: Path, dagster: dg.DagsterInstance) -> None:
    declare(data, "parcels")
    declare(data, "broken", unknown={})
    reason, _ = tick(code_location_sensor(["parcels", "broken"]), dagster)
    assert reason == "every task is loaded as declared"


def test_what_changed_is_named_with_what_to_press(data: Path, dagster: dg.DagsterInstance) -> None:
    for name in ("parcels", "gone", "repaired"):
        declare(data, name)
    (data / "repaired" / "task.yaml").write_text("name: [", "utf-8")
    sensor = code_location_sensor(["parcels", "gone", "repaired"])
    (data / "gone" / "task.yaml").unlink()
    declare(data, "repaired")
    declare(data, "added")
    reason, _ = tick(sensor, dagster)
    assert "`added` is new; the task `gone` is gone; the task `repaired` changed: press Reload" in reason


def test_an_edit_of_the_declaration_reloads_and_a_comment_does_not(data: Path, dagster: dg.DagsterInstance) -> None:
    declare(data, "parcels")
    sensor = code_location_sensor(["parcels"])
    path = declare(data, "parcels") / "task.yaml"
    path.write_text("# a comment\n" + path.read_text("utf-8"), "utf-8")
    assert tick(sensor, dagster)[0] == "every task is loaded as declared"
    declare(data, "parcels", train={"num_epochs": 3})
    assert "`parcels` changed" in tick(sensor, dagster)[0]


@contextmanager
def dagster_ui(asked: list[str]) -> Iterator[str]:
    """A Dagster UI as far as the reload goes: what it answers is what Dagster 1.13 does."""

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            asked.append(request.get("variables", {}).get("repositoryLocationName", ""))
            entry = {
                "__typename": "WorkspaceLocationEntry",
                "locationOrLoadError": {"__typename": "RepositoryLocation", "repositories": []},
            }
            body = json.dumps({"data": {"reloadRepositoryLocation": entry}}).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return None

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_the_reload_is_requested_once_for_each_change(
    data: Path, dagster: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    sensor = code_location_sensor([])
    declare(data, "added")
    asked: list[str] = []
    with dagster_ui(asked) as url:
        monkeypatch.setenv("FINETUNE_DAGSTER_URL", url)
        reason, cursor = tick(sensor, dagster)
        assert "reloaded" in reason
        reason, cursor = tick(sensor, dagster, cursor)  # where it did not help, a person is asked, and nothing loops
        assert "press Reload" in reason
        declare(data, "second")
        tick(sensor, dagster, cursor)
    assert asked == [LOCATION, LOCATION]


def test_the_location_has_the_name_of_the_workspace() -> None:
    workspace = yaml.safe_load((ROOT / "workspace.yaml").read_text("utf-8"))
    assert workspace["load_from"][0]["python_module"]["location_name"] == LOCATION
