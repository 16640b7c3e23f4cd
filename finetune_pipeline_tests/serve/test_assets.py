"""Deployment end to end: parity through the live endpoint, the move of the traffic, rollback, held versions."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from finetune_pipeline import tracking
from finetune_pipeline.baseline.answer_log import AnswerFile
from finetune_pipeline.errors import GateRefused, JobCancelled, ServingError, StorageError
from finetune_pipeline.materialize import materialize
from finetune_pipeline.records import Answer, Artifact, Example, Message, Silent, Verdict, dumps, read_jsonl
from finetune_pipeline.serve import deployment_state, parity, supervisor
from finetune_pipeline.serve.api_keys import client_key
from finetune_pipeline.serve.assets import live_opponent
from finetune_pipeline.serve.client import Live, wait_served
from finetune_pipeline.serve.parity import CONCURRENCY, compare, evaluate_parity, replay, same
from finetune_pipeline.store import home, traffic_folder
from finetune_pipeline_tests.serve.deployment import KEY, LIMIT, DecodeSequence, Deployed, declare, running

MakeAdapter = Callable[[int], Path]
ROWS = 12
TEST = [
    Example(f"{n:016x}", (Message("user", f"question {n}"), Message("assistant", "a")), "test", f"test.csv:{n}")
    for n in range(ROWS)
]


@dataclass
class World:
    server: DecodeSequence
    root: Path
    model: Path
    make_adapter: MakeAdapter

    def task(self, name: str) -> Deployed:
        task = declare(self.root / "data", name, self.model)
        for _ in range(3):
            _register(name)
        return task


@pytest.fixture(scope="module")
def world(tiny_model: Path, make_adapter: MakeAdapter, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("deployment")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETUNE_DATA", str(root / "data"))
        patch.setenv("FINETUNE_HOME", str(root / "home"))
        patch.setenv("FINETUNE_API_KEYS", f"tests:{KEY}")
        (root / "data").mkdir()
        patch.setattr(supervisor, "POLL_SECONDS", 0.1)
        with running() as server:
            patch.setenv("FINETUNE_ENDPOINT", server.url)
            yield World(server, root, tiny_model, make_adapter)


def _register(name: str) -> None:
    """A further version in MLflow's registry, so that there is something for the alias to name."""
    client = tracking._mlflow().MlflowClient()
    if not client.search_registered_models(f"name='{name}'"):
        client.create_registered_model(name)
    client.create_model_version(name, "file:///nowhere")


def evaluated(task: Deployed, folder: Path) -> dict[str, str]:
    """What the evaluation says of these rows."""
    from finetune_pipeline.inference.generate import Generation, generate
    from finetune_pipeline.inference.loading import load

    prompts = {row.id: row.chat(task.task.prompt.system) for row in TEST}
    loaded = load(Path(str(task.task.base.path)), folder)
    return {a.id: a.text for a in generate(loaded, prompts, task.task.answer, Generation("tuned", LIMIT))}


def candidate(task: Deployed, number: int, folder: Path, answers: dict[str, str]) -> Artifact:
    """Everything up to a registered model, as the stages before leave it; gives the adapter."""
    adapter = task.adapter(folder)
    task.store.point(adapter)
    rows = "\n".join(dumps(row.to_json()) for row in TEST)
    task.finished("data_split", {"test.jsonl": rows})
    lines = [dumps({"id": id_, "variant": "tuned", "text": text}) for id_, text in answers.items()]
    told = {"max_new_tokens": LIMIT, "champion": live_opponent(task.task, task.store)}
    report = task.finished("eval_report", {"answers.jsonl": "\n".join(lines), "report.json": json.dumps(told)})
    verdict = Verdict("release_decision", True, report.content_hash, "PROMOTE")
    with task.store.scratch("release_decision") as scratch:
        (scratch / "decision.json").write_text(json.dumps({"outcome": "PROMOTE", "number": number}), "utf-8")
        facts = {"summary": {}, "inputs": {}, "verdict": verdict.to_json()}
        task.store.commit("release_decision", f"decision{report.content_hash}", scratch, facts)
    model = {"name": task.name, "version": number, "adapter": adapter.content_hash, "evaluation": report.content_hash}
    task.finished("registered_model", {"model.json": json.dumps(model)})
    return adapter


def deploy(task: Deployed) -> Artifact:
    return materialize("deployed_endpoint", task.task, task.store)


def test_first_deployment_then_a_second_then_rollback_then_unhold(world: World) -> None:
    task = world.task("parcels")
    first, second = world.make_adapter(1), world.make_adapter(2)

    candidate(task, 1, first, evaluated(task, first))
    one = deploy(task)
    assert one.verdict is not None and one.verdict.passed and one.verdict.figures["share"] == 1.0
    assert one.verdict.about == task.store.current("registered_model").content_hash  # type: ignore[union-attr]
    shown = one.json("endpoint.json")
    assert shown["champion"]["version"] == 1 and shown["sample"]["tuned"] != shown["sample"]["base"]
    assert len(list(one.path("parity.jsonl").read_text().splitlines())) == ROWS
    assert tracking.alias_version("parcels", "champion") == 1
    assert deploy(task).key == one.key  # nothing has changed: nothing is done again

    candidate(task, 2, second, evaluated(task, second))
    two = deploy(task)
    assert two.summary["version"] == 2 and world.server.standing("parcels")["champion"]["version"] == 2
    assert world.server.standing("parcels")["challenger"] is None

    assert "version 1 serves again" in deployment_state.rollback("parcels", "complaints")
    world.server.until_serves("parcels", 1)
    assert tracking.alias_version("parcels", "champion") == 1
    held = deploy(task)
    assert held.key != two.key and held.verdict is not None and not held.verdict.passed
    assert (
        "rolled back" in held.verdict.summary
        and "complaints" in held.verdict.summary
        and "version 1 serves" in held.verdict.summary
    )
    assert world.server.standing("parcels")["champion"]["version"] == 1
    assert deploy(task).key == held.key

    assert "may be deployed again" in deployment_state.unhold("parcels")
    again = deploy(task)
    assert again.verdict is not None and again.verdict.passed
    assert world.server.standing("parcels")["champion"]["version"] == 2
    with pytest.raises(GateRefused, match="nothing holds it"):
        deployment_state.unhold("parcels")

    candidate(task, 1, first, evaluated(task, first))  # the older model becomes the current one again
    back = deploy(task)
    assert back.key != one.key and world.server.standing("parcels")["champion"]["version"] == 1


def test_other_settings_are_deployed_without_changing_the_model(world: World) -> None:
    task = world.task("settings")
    candidate(task, 1, world.make_adapter(1), evaluated(task, world.make_adapter(1)))
    before = deploy(task)
    serve = task.task.serve.model_copy(update={"on_invalid": "reject"})
    task.task = task.task.model_copy(update={"serve": serve})
    assert deploy(task).key != before.key
    assert world.server.endpoint.supervisor.table.routes["settings"].on_invalid == "reject"
    assert deployment_state.read(task.store).previous == ()


def test_what_is_served_is_not_what_was_evaluated(world: World) -> None:
    task = world.task("unlike")
    first, second = world.make_adapter(1), world.make_adapter(2)
    candidate(task, 1, first, evaluated(task, first))
    deploy(task)
    candidate(task, 2, second, evaluated(task, first))  # evaluated was another one
    failed = deploy(task)
    assert failed.verdict is not None and not failed.verdict.passed
    assert "served equals evaluated" in failed.verdict.summary and TEST[0].id in failed.verdict.summary
    assert deployment_state.read(task.store).champion.version == 1  # type: ignore[union-attr]
    assert deployment_state.read(task.store).challenger is None
    assert tracking.alias_version("unlike", "champion") == 1
    assert world.server.standing("unlike")["champion"]["version"] == 1
    assert failed.json("endpoint.json")["champion"]["version"] == 1


def test_an_adapter_that_does_nothing_is_noticed(world: World) -> None:
    task = world.task("idle")
    idle = world.make_adapter(0)
    candidate(task, 1, idle, evaluated(task, idle))
    failed = deploy(task)
    assert (
        failed.verdict is not None and not failed.verdict.passed and "the adapter is at work" in failed.verdict.summary
    )
    assert failed.verdict.figures["share"] == 1.0 and deployment_state.read(task.store).champion is None


def test_a_tampered_adapter_moves_nothing(world: World) -> None:
    task = world.task("tampered")
    first, third = world.make_adapter(1), world.make_adapter(3)
    candidate(task, 1, first, evaluated(task, first))
    deploy(task)
    adapter = candidate(task, 2, third, evaluated(task, third))
    (adapter.folder / "adapter_config.json").write_text("{}", "utf-8")
    with pytest.raises(StorageError, match=r"is not what adapter wrote"):
        deploy(task)
    state = deployment_state.read(task.store)
    assert state.challenger is None and state.champion is not None and state.champion.version == 1
    assert world.server.ask("tampered").headers["x-finetune-version"] == "1"


def test_a_rollback_during_a_deployment_stands(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once before the traffic moves, and once behind it."""
    from finetune_pipeline.serve import assets

    task = world.task("crossed")
    for number in (1, 2):
        candidate(task, number, world.make_adapter(number), evaluated(task, world.make_adapter(number)))
        deploy(task)

    def rolling_back(endpoint: Live, name: str, role: str, *rest: Any) -> None:
        if role == at[0]:
            deployment_state.rollback("crossed", "wrong prices")
        return waiting(endpoint, name, role, *rest)

    waiting = wait_served
    monkeypatch.setattr(assets, "wait_served", rolling_back)
    at = [""]
    for at[0], serves, held in (("challenger", 1, 1), ("champion", 1, 2)):
        candidate(task, 3, world.make_adapter(3), evaluated(task, world.make_adapter(3)))  # against what is live now
        with pytest.raises(ServingError, match="is not the desired state of crossed any more"):
            deploy(task)
        state = deployment_state.read(task.store)
        assert state.champion is not None and state.champion.version == serves and len(state.held) == held
        assert state.challenger is None
        world.server.until_serves("crossed", serves)
        assert tracking.alias_version("crossed", "champion") == serves


def test_a_registry_that_is_down_does_not_undo_what_serves(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(*_: object) -> None:
        raise StorageError("MLflow at http://db does not set an alias: connection refused")

    task = world.task("unlisted")
    for number in (1, 2):
        candidate(task, number, world.make_adapter(number), evaluated(task, world.make_adapter(number)))
        deploy(task)
    monkeypatch.setattr(tracking, "set_alias", down)
    assert (
        "could not follow: MLflow at http://db does not set an alias: connection refused"
        in deployment_state.rollback("unlisted", "complaints")
    )
    world.server.until_serves("unlisted", 1)
    candidate(task, 3, world.make_adapter(3), evaluated(task, world.make_adapter(3)))
    assert deploy(task).summary["version"] == 3


def test_a_replay_that_fails_names_the_row_and_what_the_endpoint_said(world: World) -> None:
    with pytest.raises(ServingError, match=rf"row {TEST[0].id} with 404: .*there is no model 'nobody'"):
        replay(Live(world.server.url, client_key(home())), "nobody", TEST[:1], Silent())
    with pytest.raises(ServingError, match="broke off at row"):
        replay(Live("http://127.0.0.1:9", KEY), "nobody", TEST, Silent())


def test_an_interrupted_replay_goes_on_where_it_was(world: World, tmp_path: Path) -> None:
    """Also where the deployment asks: what is answered is not asked again, and nothing is left behind at the end."""
    task = world.task("resumed")
    candidate(task, 1, world.make_adapter(1), evaluated(task, world.make_adapter(1)))

    class Impatient(Silent):
        def progress(self, what: str, done: int, total: int, **figures: float) -> None:
            if done == 5:
                raise JobCancelled("stopped")

    with pytest.raises(JobCancelled):
        materialize("deployed_endpoint", task.task, task.store, Impatient())
    (file,) = Path(str(task.store.stage_folder("serve"))).glob("answers/*/answers.jsonl")
    before = [json.loads(line)["id"] for line in file.read_text().splitlines()]
    assert len(before) >= 5
    said: list[str] = []

    class Listening(Silent):
        def log(self, text: str) -> None:
            said.append(text)

    made = materialize("deployed_endpoint", task.task, task.store, Listening())
    assert made.verdict is not None and made.verdict.passed and made.verdict.figures["rows"] == ROWS
    assert f"{len(before)} answers of resumed@1 are there from before" in said
    assert not file.exists()
    checks = [row for path in traffic_folder("resumed").glob("checks/*.jsonl") for row in read_jsonl(path)]
    assert sum(row["model"] == "resumed@1" for row in checks if row["status"] == "ok") <= ROWS + CONCURRENCY - 5


def test_what_is_answered_is_not_asked_again(tmp_path: Path) -> None:
    """Nobody listens at this address."""
    kept = AnswerFile(tmp_path / "answers.jsonl")
    for row in TEST:
        kept.append(Answer(row.id, "parcels", "a"))
    nobody = Live("http://127.0.0.1:9", KEY)
    assert replay(nobody, "parcels", TEST, Silent(), AnswerFile(tmp_path / "answers.jsonl")) == {
        e.id: "a" for e in TEST
    }
    with pytest.raises(ServingError, match="broke off at row"):
        replay(nobody, "parcels@base", TEST, Silent(), kept)  # the answers of another model are not its own


class Slow(ThreadingHTTPServer):
    """An endpoint that answers when it is let; `steps` are those it says it has computed."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), SlowHandler)
        self.steps, self.works, self.answers, self.full = 0, True, threading.Event(), 3
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class SlowHandler(BaseHTTPRequestHandler):
    server: Slow

    def do_GET(self) -> None:
        self.server.steps += self.server.works
        self.say(200, {"steps": self.server.steps})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        if self.server.full > 0:
            self.server.full -= 1
            return self.say(429, {})
        self.server.answers.wait(30)
        return self.say(200, {"choices": [{"message": {"content": "a"}}]})

    def say(self, status: int, row: dict[str, Any]) -> None:
        raw = json.dumps(row).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(raw)))
        self.send_header("retry-after", "0")
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        return None


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    for name, seconds in (("WATCH_SECONDS", 0.05), ("SAY_SECONDS", 0.1), ("STALLED_SECONDS", 1.0)):
        monkeypatch.setattr(parity, name, seconds)
    server = Slow()
    yield server
    server.answers.set()
    server.shutdown()
    server.server_close()


class Hasty(asyncio.SelectorEventLoop):
    """Its clock runs a thousand times too fast, so that a limit of half an hour is reached in two seconds."""

    def time(self) -> float:
        return super().time() * 1000


@pytest.mark.parametrize("loop", [asyncio.SelectorEventLoop, Hasty])
def test_a_slow_replay_says_so_and_goes_on(slow: Slow, loop: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncio.events, "new_event_loop", loop)  # which asyncio.run calls
    said: list[str] = []

    class Listening(Silent):
        def log(self, text: str) -> None:
            said.append(text)
            if len(said) == 15:  # longer than what is taken for a stall
                slow.answers.set()

    assert replay(Live(slow.url, KEY), "parcels", TEST, Listening()) == {row.id: "a" for row in TEST}
    assert "0 of 12 rows" in said[0] and "work goes on" in said[0]


def test_an_endpoint_that_computes_nothing_ends_the_replay(slow: Slow) -> None:
    slow.works = False
    with pytest.raises(ServingError, match=r"has computed nothing for \d+ s; 0 of 12 rows"):
        replay(Live(slow.url, KEY), "parcels", TEST, Silent())


# the pure part ----------------------------------------------------------------------------------------------


def test_answers_are_compared_by_what_they_say() -> None:
    from finetune_pipeline.config import AnswerFormat

    spec = AnswerFormat(format="json", json_schema={"type": "object"})
    assert same('{"a": 1, "b": null}', '{"b":null,"a":1}', spec)
    assert not same('{"a": 1}', '{"a": "1"}', spec)
    assert same("broken {", " broken {", spec) and not same("broken {", "broken [", spec)
    assert not same('{"a": 1}', "a", spec)


def test_parity_passes_from_the_threshold_on() -> None:
    from finetune_pipeline.config import AnswerFormat

    spec = AnswerFormat()
    truth = {row.id: "a" for row in TEST}
    served = {**truth, TEST[0].id: "b"}
    result = compare(TEST, served, truth, {TEST[1].id: "c"}, spec)
    assert (
        result.share == pytest.approx(11 / 12) and result.served_exact == result.share and result.evaluated_exact == 1.0
    )
    assert evaluate_parity(result, 11 / 12, "x").passed
    refused = evaluate_parity(result, 0.97, "x")
    assert not refused.passed and TEST[0].id in refused.summary
    assert not evaluate_parity(compare(TEST, truth, truth, {TEST[1].id: "a"}, spec), 0.97, "x").passed


def test_a_candidate_is_not_deployed_over_a_version_it_was_not_compared_with(world: World) -> None:
    """Something else went live after the decision: the decision says nothing about that."""
    task = world.task("overtaken")
    new = candidate(task, 2, world.make_adapter(2), {row.id: "" for row in TEST})
    task.promote(1, world.make_adapter(1))
    task.store.point(new)
    with pytest.raises(GateRefused, match="compared the candidate with no version, and now version 1 is live"):
        deploy(task)
    served = deployment_state.read(task.store).champion
    assert served is not None and served.version == 1
