"""A real endpoint on loopback with two tasks' adapters on one base, asked through the official client."""

from __future__ import annotations

import json
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from finetune_pipeline.inference.generate import encode
from finetune_pipeline.records import read_jsonl
from finetune_pipeline.serve import deployment_state, endpoint, supervisor
from finetune_pipeline.serve.api_keys import client_key
from finetune_pipeline.store import home, traffic_folder
from finetune_pipeline_tests.serve.deployment import KEY, LIMIT, DecodeSequence, Deployed, declare, running

MakeAdapter = Callable[[int], Path]


@dataclass
class World:
    server: DecodeSequence
    parcels: Deployed
    sorting: Deployed


@pytest.fixture(scope="module")
def world(tiny_model: Path, make_adapter: MakeAdapter, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """`parcels` answers in plain text; `sorting` has to answer with a label, and the random model never does."""
    root = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETUNE_DATA", str(root / "data"))
        patch.setenv("FINETUNE_HOME", str(root / "home"))
        parcels = declare(root / "data", "parcels", tiny_model)
        labels = {"format": "label", "labels": ["lost", "late"]}
        sorting = declare(root / "data", "sorting", tiny_model, answer=labels, serve={"alias": "sort"})
        parcels.promote(1, make_adapter(1))
        sorting.promote(7, make_adapter(2))
        patch.setattr(supervisor, "POLL_SECONDS", 0.1)
        with running() as server:
            yield World(server, parcels, sorting)


def client(world: World, key: str = KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=world.server.url + "/v1", api_key=key, max_retries=0, timeout=60)


def say(world: World, model: str, question: str = "where is my parcel?", **more: Any) -> str:
    answer = client(world).chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], **more
    )
    return answer.choices[0].message.content or ""


def lines(world: World, task: str, folder: str = "") -> list[dict[str, Any]]:
    assert world.server.endpoint.traffic.flush()
    return [row for path in sorted((traffic_folder(task) / folder).glob("*.jsonl")) for row in read_jsonl(path)]


# answers ----------------------------------------------------------------------------------------------------


def test_a_plain_answer_says_which_version_gave_it(world: World) -> None:
    raw = client(world).chat.completions.with_raw_response.create(
        model="parcels", messages=[{"role": "user", "content": "hello"}]
    )
    answer = raw.parse()
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage is not None and 0 < answer.usage.completion_tokens <= LIMIT
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    served = world.server.standing("parcels")["champion"]["adapter"]
    assert answer.system_fingerprint == f"parcels@1:{served}"
    assert raw.headers["x-finetune-version"] == "1" and raw.headers["x-finetune-adapter"] == served
    assert raw.headers["x-finetune-request"] == answer.id and raw.headers["x-finetune-valid"] == "true"


def test_a_stream_is_the_plain_answer_in_pieces(world: World) -> None:
    for question in ("hello", "ünïcode 👩‍👩‍👧?", ""):
        messages: Any = [{"role": "user", "content": question}]
        stream = client(world).chat.completions.create(
            model="parcels", messages=messages, stream=True, stream_options={"include_usage": True}
        )
        pieces = list(stream)
        text = "".join(p.choices[0].delta.content or "" for p in pieces if p.choices)
        assert text == say(world, "parcels", question)
        assert pieces[-1].usage is not None and pieces[-1].usage.completion_tokens <= LIMIT
        assert len(pieces) > 5
        assert pieces[-2].choices[0].finish_reason in ("stop", "length")
        assert pieces[-2].model_extra is not None and pieces[-2].model_extra["finetune"]["valid"] is True


def test_two_tasks_and_the_base_answer_differently_and_at_the_same_time(world: World) -> None:
    names = ["parcels", "sort", "base", "parcels@base", "sort@base"]
    alone = {name: say(world, name) for name in names}
    assert len(set(alone.values())) == 5  # two adapters, and three system prompts (none among them) on the base
    with ThreadPoolExecutor(15) as pool:
        together = list(pool.map(lambda name: say(world, name), names * 3))
    assert together == [alone[name] for name in names] * 3


def test_the_tasks_system_prompt_is_added_unless_the_request_brings_one(world: World) -> None:
    def usage(*messages: tuple[str, str]) -> tuple[str, int]:
        chat: Any = [{"role": role, "content": text} for role, text in messages]
        answer = client(world).chat.completions.create(model="parcels", messages=chat)
        assert answer.usage is not None
        return answer.choices[0].message.content or "", answer.usage.prompt_tokens

    plain = usage(("user", "hi"))
    assert plain == usage(("system", "Answer parcels with one word."), ("user", "hi"))
    assert plain != usage(("system", "Be rude."), ("user", "hi"))


def test_limits_seeds_and_stop_strings_are_kept(world: World) -> None:
    assert say(world, "parcels") == say(world, "parcels", temperature=0)
    drawn = {say(world, "parcels", temperature=1.5, seed=seed) for seed in (1, 1, 2)}
    assert len(drawn) == 2
    whole = say(world, "parcels")
    assert whole.startswith(say(world, "parcels", max_tokens=3)) and len(say(world, "parcels", max_tokens=3)) < len(
        whole
    )
    mark = whole[len(whole) // 2]
    assert say(world, "parcels", stop=[mark]) == whole[: whole.index(mark)]


def test_models_lists_every_name(world: World) -> None:
    names = {model.id for model in client(world).models.list()}
    assert names == {"base", "parcels", "parcels@1", "parcels@base", "sort", "sort@7", "sort@base"}


# errors -----------------------------------------------------------------------------------------------------


def test_a_wrong_key_stays_out_of_everything_but_health(world: World) -> None:
    with pytest.raises(openai.AuthenticationError, match="the API key is wrong"):
        say_with = client(world, "wrong")
        say_with.chat.completions.create(model="parcels", messages=[{"role": "user", "content": "hi"}])
    for path in ("/v1/models", "/version", "/metrics"):
        assert world.server.get(path, key="wrong").status_code == 401
    bare = httpx.post(world.server.url + "/v1/chat/completions", content=b"{}")
    assert bare.status_code == 401 and "there is no API key" in bare.json()["error"]["message"]
    health = httpx.get(world.server.url + "/health").json()
    assert health["status"] == "ok" and set(health) == {"status", "identity", "started", "failing_tasks"}


def test_an_unknown_model_lists_the_known(world: World) -> None:
    with pytest.raises(openai.NotFoundError, match=r"no model 'nobody'; known: base, parcels, parcels@1"):
        say(world, "nobody")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"hello", "the body is no JSON"),
        ({"messages": []}, "`model` is missing"),
        ({"model": "parcels"}, "`messages` is missing"),
        ({"model": "parcels", "messages": [{"role": "user", "content": "x"}], "temperature": 9}, "`temperature`"),
        ({"model": "parcels", "messages": [{"role": "user", "content": "x " * 4000}]}, "shorten `messages`"),
        ({"model": "parcels", "messages": [{"role": "user", "content": "x "}], "top_k": 5}, "`top_k` is no parameter"),
    ],
)
def test_a_bad_request_says_what_is_wrong_and_the_cure(world: World, body: Any, says: str) -> None:
    response = world.server.post(body)
    assert response.status_code == 400 and says in response.json()["error"]["message"]
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_other_ways_to_ask_wrongly(world: World) -> None:
    assert world.server.post(b"x" * (5 << 20)).status_code == 413
    missing = world.server.get("/v1/completions")
    assert missing.status_code == 404 and "POST /v1/chat/completions" in missing.json()["error"]["message"]
    assert world.server.get("/v1/chat/completions").status_code == 405


def test_too_many_requests_are_sent_away_with_a_time_to_come_back(world: World) -> None:
    engine = next(iter(world.server.endpoint.supervisor._engines.values()))
    engine._max_requests, before = 0, engine._max_requests
    try:
        response = world.server.ask("parcels")
        streamed = world.server.ask("parcels", stream=True)
    finally:
        engine._max_requests = before
    assert response.status_code == streamed.status_code == 429 and int(response.headers["retry-after"]) > 0
    assert response.json()["error"]["type"] == "rate_limit_error"
    assert world.server.ask("parcels").status_code == 200


@contextmanager
def long_answers(world: World, make_adapter: MakeAdapter) -> Iterator[None]:
    """Within the block, `parcels` may answer with 1900 tokens."""
    for limit in (1900, LIMIT):
        world.parcels.promote(1, make_adapter(1), max_new_tokens=limit)
        world.server.until(lambda limit=limit: limit_of(world) == limit, "the limit")  # type: ignore[misc]
        if limit == 1900:
            yield


def limit_of(world: World) -> int:
    return world.server.endpoint.supervisor.table.routes["parcels"].max_new_tokens


def hang_up(world: World, model: str, stream: bool) -> None:
    """Ask for a long answer, and leave after its first piece (or a moment, where it does not come in pieces)."""
    url, headers = f"{world.server.url}/v1/chat/completions", {"authorization": f"Bearer {KEY}"}
    body = {"model": model, "messages": [{"role": "user", "content": "go on"}], "stream": stream}
    try:
        with httpx.stream("POST", url, json=body, headers=headers, timeout=0.2 + stream) as response:
            next(response.iter_lines())
    except httpx.ReadTimeout:
        assert not stream


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_frees_its_place_and_leaves_a_line(
    world: World, make_adapter: MakeAdapter, stream: bool
) -> None:
    with long_answers(world, make_adapter):
        before = len(lines(world, "parcels"))
        hang_up(world, "parcels", stream)
        world.server.until(lambda: world.server.endpoint.supervisor.busy() == (0, 0), "the place to be free")
        world.server.until(lambda: len(lines(world, "parcels")) > before, "its line")
    line = lines(world, "parcels")[before]
    assert line["status"] == "abandoned" and line["valid"] is None and line["completion"] is None
    assert line["prompt"] == "go on" and line["completion_tokens"] < 1900 and line["queued_seconds"] >= 0
    assert 'finetune_abandoned_total{model="parcels"}' in world.server.get("/metrics").text


def test_the_longest_answer_is_the_routes_whatever_is_asked_for(world: World) -> None:
    response = world.server.ask("parcels", max_tokens=10**30).json()
    assert response["usage"]["completion_tokens"] <= LIMIT


def test_a_bad_sampling_value_fails_its_own_request_only(world: World) -> None:
    odd: list[dict[str, Any]] = [{"temperature": 1e-38}, {"top_p": 1e-300, "temperature": 1.0}, {"seed": 2**70}]
    with ThreadPoolExecutor(9) as pool:
        good = [pool.submit(world.server.ask, "parcels") for _ in range(6)]
        bad = [pool.submit(world.server.ask, "parcels", **each) for each in odd]
    assert {response.result().status_code for response in good} == {200}
    assert [response.result().status_code for response in bad] == [200, 200, 400]
    assert "`seed`" in bad[2].result().json()["error"]["message"]


@pytest.mark.parametrize("piece", ["x", "x ", "\u00e9", "<|im_end|>", "\n"])
def test_a_huge_prompt_is_refused_before_it_costs_time(
    world: World, piece: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "encode", lambda *_: pytest.fail("it was tokenized"))
    response = world.server.ask("parcels", piece * (600_000 // len(piece)))
    assert response.status_code == 400 and "characters" in response.json()["error"]["message"]


def test_health_answers_while_prompts_are_tokenized(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work off the event loop: a tokenizer that waits until somebody was told that the endpoint is well."""
    told = threading.Event()

    def slow(tokenizer: Any, messages: Any) -> list[int]:
        assert told.wait(30)
        return encode(tokenizer, messages)

    monkeypatch.setattr(endpoint, "encode", slow)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(world.server.ask, "parcels")
        time.sleep(0.2)
        assert httpx.get(world.server.url + "/health", timeout=20).status_code == 200
        told.set()
        assert asked.result().status_code == 200


# what is done with invalid answers ---------------------------------------------------------------------------


def test_an_invalid_answer_is_marked(world: World) -> None:
    response = world.server.ask("sort")
    body = response.json()
    assert response.status_code == 200 and response.headers["x-finetune-valid"] == "false"
    assert body["finetune"]["status"] == "invalid" and "not one of the 2 labels" in body["finetune"]["problem"]


def test_every_policy_for_invalid_answers_takes_effect_without_a_restart(
    world: World, make_adapter: MakeAdapter
) -> None:
    def policy(name: str) -> None:
        world.sorting.promote(7, make_adapter(2), on_invalid=name)
        world.server.until(lambda: world.server.endpoint.supervisor.table.routes["sort"].on_invalid == name, name)

    passed = world.server.ask("sort").json()["choices"][0]["message"]["content"]
    policy("reject")
    for stream in (False, True):
        rejected = world.server.ask("sort", stream=stream)
        assert rejected.status_code == 422 and "not one of the 2 labels" in rejected.json()["error"]["message"]
    policy("base")
    fallback = world.server.ask("sort").json()
    assert fallback["finetune"]["status"] == "fallback"
    assert fallback["choices"][0]["message"]["content"] == say(world, "sort@base")
    policy("retry")
    again = world.server.ask("sort").json()
    assert again["choices"][0]["message"]["content"] != passed and again["usage"]["completion_tokens"] > LIMIT
    streamed = world.server.ask("sort", stream=True)
    assert streamed.headers["x-finetune-status"] == "invalid"
    assert again["choices"][0]["message"]["content"] in [
        json.loads(line[6:])["choices"][0]["delta"].get("content")
        for line in streamed.text.splitlines()
        if '"delta"' in line
    ]
    policy("flag")


# traces -----------------------------------------------------------------------------------------------------


def test_every_answer_is_logged_with_its_version(world: World) -> None:
    before = len(lines(world, "parcels"))
    request = world.server.ask("parcels", "mail me at anna@example.com").json()["id"]
    world.server.ask("parcels", stream=True)
    first, second = lines(world, "parcels")[before:]
    assert first["request"] == request and first["version"] == 1 and first["key"] == "tests" and first["status"] == "ok"
    assert first["prompt"] == "mail me at <EMAIL>" and first["valid"] is True and not first["stream"]
    assert 0 < first["first_token_seconds"] <= first["seconds"] and first["completion_tokens"] <= LIMIT
    assert second["stream"] and second["adapter"] == first["adapter"]


def test_what_is_refused_leaves_a_line_where_it_belongs(world: World) -> None:
    before, nobody = len(lines(world, "parcels")), len(lines(world, "_refused"))
    world.server.ask("parcels", "x " * 4000)
    world.server.ask("nobody")
    world.server.post(b"{")
    world.server.post({"model": "parcels", "messages": []}, key="wrong")  # anybody could fill the disk with these
    (line,) = lines(world, "parcels")[before:]
    assert (line["status"], line["code"], line["key"]) == ("refused", "context_length_exceeded", "tests")
    assert line["prompt"] is None and line["version"] == 1
    assert [row["code"] for row in lines(world, "_refused")[nobody:]] == ["model_not_found", "invalid_json"]


def test_waiting_for_a_place_is_measured(world: World) -> None:
    before = len(lines(world, "parcels"))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: world.server.ask("parcels"), range(8)))
    seen = lines(world, "parcels")[before:]
    assert len(seen) == 8 and all(0 <= row["queued_seconds"] <= row["first_token_seconds"] for row in seen)


def test_nobody_but_the_pipeline_asks_without_being_counted(world: World) -> None:
    before = len(lines(world, "parcels"))
    body = {"model": "parcels", "messages": [{"role": "user", "content": "hi"}]}
    refused = world.server.post(body, **{"x-finetune-purpose": "parity"})
    assert refused.status_code == 403 and "x-finetune-purpose" in refused.json()["error"]["message"]
    world.server.ask("parcels@1")  # nor by another name of the same model
    assert [row["model"] for row in lines(world, "parcels")[before:]] == ["parcels@1"]


def test_the_log_can_be_read_by_its_owner_alone(world: World) -> None:
    world.server.ask("parcels")
    lines(world, "parcels")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in traffic_folder("parcels").rglob("*.jsonl")}
    assert modes == {0o600}


def test_checks_are_no_traffic_and_text_stays_out_where_declared(world: World, make_adapter: MakeAdapter) -> None:
    traffic, checks = len(lines(world, "parcels")), len(lines(world, "parcels", "checks"))
    for model in ("parcels@1", "parcels"):
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
        world.server.post(body, client_key(home()), **{"x-finetune-purpose": "parity"})
    assert len(lines(world, "parcels")) == traffic and len(lines(world, "parcels", "checks")) == checks + 2
    world.sorting.promote(7, make_adapter(2), log_text=False)
    world.server.until(lambda: not world.server.endpoint.supervisor.table.routes["sort"].log_text, "log_text")
    world.server.ask("sort")
    assert lines(world, "sorting")[-1]["prompt"] is None and lines(world, "sorting")[-1]["completion"] is None


def test_metrics_count_by_version(world: World) -> None:
    def count() -> float:
        wanted = 'finetune_answers_total{model="parcels",status="ok",version="1"}'
        return next(
            (
                float(row.split()[-1])
                for row in world.server.get("/metrics").text.splitlines()
                if row.startswith(wanted)
            ),
            0,
        )

    before = count()
    world.server.ask("parcels")
    assert count() == before + 1


# versions ---------------------------------------------------------------------------------------------------


def test_the_version_changes_while_requests_run_and_rollback_brings_it_back(
    world: World, make_adapter: MakeAdapter
) -> None:
    task = declared_anew(world, "moving", make_adapter)
    seen: list[tuple[int, str]] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            response = world.server.ask("moving")
            seen.append(
                (
                    response.status_code,
                    response.headers["x-finetune-version"] + response.json()["choices"][0]["message"]["content"],
                )
            )

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    task.promote(2, make_adapter(3))
    world.server.until(lambda: {text[0] for _, text in seen} == {"1", "2"}, "an answer of version 2")
    deployment_state.change(task.store, lambda state: deployment_state.back(state, "2026-02-01", "worse"))
    world.server.until_serves("moving", 1)
    count = len(seen)
    world.server.until(lambda: len(seen) > count + 6, "more answers")
    stop.set()
    for thread in threads:
        thread.join(30)
    assert {status for status, _ in seen} == {200}
    assert len({text for _, text in seen}) == 2  # one answer per version: none is mixed, none is lost
    assert seen[-1][1][0] == "1"
    engine = next(iter(world.server.endpoint.supervisor._engines.values()))
    world.server.until(
        lambda: task.adapter(make_adapter(3)).content_hash not in engine._adapters.names, "the old one to go"
    )


def test_a_challenger_is_served_beside_the_champion(world: World, make_adapter: MakeAdapter) -> None:
    task = declared_anew(world, "trying", make_adapter)
    version = task.version(2, task.adapter(make_adapter(3)))
    deployment_state.change(task.store, lambda state: deployment_state.challenge(state, version))
    world.server.until(lambda: "trying@2" in world.server.endpoint.supervisor.table.routes, "the challenger")
    assert say(world, "trying") == say(world, "trying@1") != say(world, "trying@2")
    deployment_state.change(task.store, lambda state: deployment_state.withdraw(state, version))
    world.server.until(lambda: "trying@2" not in world.server.endpoint.supervisor.table.routes, "its end")
    assert world.server.ask("trying@2").status_code == 404


def test_a_broken_adapter_leaves_the_version_before_and_says_why(world: World, make_adapter: MakeAdapter) -> None:
    task = declared_anew(world, "broken", make_adapter)
    before = say(world, "broken")
    adapter = task.adapter(make_adapter(3))
    raw = bytearray((adapter.folder / "adapter_model.safetensors").read_bytes())
    raw[-1] ^= 1
    (adapter.folder / "adapter_model.safetensors").write_bytes(raw)
    task.promote(2, make_adapter(3))
    world.server.until(lambda: bool(world.server.standing("broken")["errors"]), "the error")
    assert "is not what adapter wrote" in world.server.standing("broken")["errors"]["champion"]
    assert say(world, "broken") == before and world.server.standing("broken")["champion"]["version"] == 1
    shutil.rmtree(adapter.folder)  # and a desired state nobody can read changes nothing either
    (task.store.stage_folder("serve") / "deployment_state.json").write_text("{")
    world.server.until(lambda: "state" in world.server.standing("broken")["errors"], "the error")
    assert say(world, "broken") == before
    assert 'finetune_deploy_errors_total{task="broken"} 2.0' in world.server.get("/metrics").text


def test_one_damaged_manifest_takes_one_task_down_and_health_says_so(world: World, make_adapter: MakeAdapter) -> None:
    def health() -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(world.server.url + "/health", timeout=30).json()
        return found

    failing = health()["failing_tasks"]
    task, other = (declared_anew(world, name, make_adapter) for name in ("damaged", "unharmed"))
    adapter = task.adapter(make_adapter(3))
    (adapter.folder / "manifest.json").write_text('{"content": "' + adapter.content_hash + '"}')
    deployment_state.change(task.store, lambda s: deployment_state.promote(s, task.version(2, adapter), s.champion))
    other.promote(2, make_adapter(3))
    world.server.until_serves("unharmed", 2)
    world.server.until(lambda: bool(world.server.standing("damaged")["errors"]), "the error")
    assert "manifest.json is damaged" in world.server.standing("damaged")["errors"]["champion"]
    assert world.server.ask("damaged").headers["x-finetune-version"] == "1"
    assert health()["status"] == "degraded" and health()["failing_tasks"] == failing + 1
    deployment_state.desired_file(task.store).write_text('{"champion": 5, "previous": 7}')
    world.server.until(lambda: "state" in world.server.standing("damaged")["errors"], "the error")
    state: dict[str, Any] = {"champion": {**asdict(task.version(3, adapter)), "adapter": ["x"]}, "challenger": None}
    state |= {"previous": [], "held": {}, "history": []}
    deployment_state.desired_file(task.store).write_text(json.dumps(state))  # a value of a kind that nobody foresaw
    world.server.until(lambda: "TypeError" in world.server.standing("damaged")["errors"]["state"], "the error")
    other.promote(3, make_adapter(2))
    world.server.until_serves("unharmed", 3)
    assert world.server.ask("damaged").status_code == world.server.ask("unharmed").status_code == 200
    shutil.rmtree(Path(str(task.store.root)))
    world.server.until(lambda: health()["failing_tasks"] == failing, "its end")


def test_two_tasks_cannot_have_one_name(world: World, make_adapter: MakeAdapter) -> None:
    before = say(world, "sort")
    task = declared_anew(world, "thief", make_adapter, serve={"alias": "sort"}, wait=False)
    world.server.until(lambda: "name" in world.server.standing("thief").get("errors", {}), "the error")
    assert "'sort' is taken" in world.server.standing("thief")["errors"]["name"]
    assert say(world, "sort") == before
    shutil.rmtree(Path(str(task.store.root)))


def declared_anew(world: World, name: str, make_adapter: MakeAdapter, wait: bool = True, **sections: Any) -> Deployed:
    root = Path(str(world.parcels.store.root)).parent
    task = declare(root, name, Path(str(world.parcels.task.base.path)), **sections)
    task.promote(1, make_adapter(4))
    world.server.until(lambda: name in world.server.endpoint.supervisor.table.tasks, name)
    if wait:
        world.server.until_serves(name, 1)
    return task
