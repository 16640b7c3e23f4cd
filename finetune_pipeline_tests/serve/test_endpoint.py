"""A real endpoint on loopback with two tasks' adapters on one base model, called through the official client."""

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
from finetune_pipeline.serve import deployment_state, embedded_chat, supervisor, transitions
from finetune_pipeline.serve.api_keys import pipeline_key
from finetune_pipeline.serve.traffic import PURPOSE_HEADER
from finetune_pipeline.store import home, traffic_folder
from finetune_pipeline_tests.serve.deployment import KEY, LIMIT, Deployed, RunningEndpoint, declare, running

MakeAdapter = Callable[[int], Path]


@dataclass
class Served:
    server: RunningEndpoint
    parcels: Deployed
    sorting: Deployed


@pytest.fixture(scope="module")
def served(tiny_model: Path, make_adapter: MakeAdapter, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`parcels` answers in plain text; `sorting` has to answer with a label, and the random model never does."""
    root = tmp_path_factory.mktemp("served")
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
            yield Served(server, parcels, sorting)


def client(served: Served, key: str = KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=served.server.url + "/v1", api_key=key, max_retries=0, timeout=60)


def answer_text(served: Served, model: str, prompt: str = "where is my parcel?", **more: Any) -> str:
    answer = client(served).chat.completions.create(model=model, messages=[{"role": "user", "content": prompt}], **more)
    return answer.choices[0].message.content or ""


def log_lines(served: Served, task: str, folder: str = "") -> list[dict[str, Any]]:
    assert served.server.endpoint.traffic.flush()
    return [row for path in sorted((traffic_folder(task) / folder).glob("*.jsonl")) for row in read_jsonl(path)]


# answers ----------------------------------------------------------------------------------------------------


def test_a_response_names_the_version_that_answered(served: Served) -> None:
    raw = client(served).chat.completions.with_raw_response.create(
        model="parcels", messages=[{"role": "user", "content": "hello"}]
    )
    answer = raw.parse()
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage is not None and 0 < answer.usage.completion_tokens <= LIMIT
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    adapter = served.server.status("parcels")["champion"]["adapter"]
    assert answer.system_fingerprint == f"parcels@1:{adapter}"
    assert raw.headers["x-finetune-version"] == "1" and raw.headers["x-finetune-adapter"] == adapter
    assert raw.headers["x-finetune-request"] == answer.id and raw.headers["x-finetune-valid"] == "true"


def test_the_chunks_of_a_stream_are_the_plain_answer(served: Served) -> None:
    for prompt in ("hello", "ünïcode 👩‍👩‍👧?", ""):
        messages: Any = [{"role": "user", "content": prompt}]
        stream = client(served).chat.completions.create(
            model="parcels", messages=messages, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == answer_text(served, "parcels", prompt)
        assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens <= LIMIT
        assert len(chunks) > 5
        assert chunks[-2].choices[0].finish_reason in ("stop", "length")
        assert chunks[-2].model_extra is not None and chunks[-2].model_extra["finetune"]["valid"] is True


def test_two_tasks_and_the_base_model_answer_concurrently_as_alone(served: Served) -> None:
    names = ["parcels", "sort", "base", "parcels@base", "sort@base"]
    alone = {name: answer_text(served, name) for name in names}
    assert len(set(alone.values())) == 5  # two adapters, and three system prompts (none among them) on the base
    with ThreadPoolExecutor(15) as pool:
        together = list(pool.map(lambda name: answer_text(served, name), names * 3))
    assert together == [alone[name] for name in names] * 3


def test_the_tasks_system_prompt_is_added_unless_the_request_brings_one(served: Served) -> None:
    def usage(*messages: tuple[str, str]) -> tuple[str, int]:
        chat: Any = [{"role": role, "content": text} for role, text in messages]
        answer = client(served).chat.completions.create(model="parcels", messages=chat)
        assert answer.usage is not None
        return answer.choices[0].message.content or "", answer.usage.prompt_tokens

    plain = usage(("user", "hi"))
    assert plain == usage(("system", "Answer parcels with one word."), ("user", "hi"))
    assert plain != usage(("system", "Be rude."), ("user", "hi"))


def test_limits_seeds_and_stop_strings_take_effect(served: Served) -> None:
    assert answer_text(served, "parcels") == answer_text(served, "parcels", temperature=0)
    sampled = {answer_text(served, "parcels", temperature=1.5, seed=seed) for seed in (1, 1, 2)}
    assert len(sampled) == 2
    full = answer_text(served, "parcels")
    assert full.startswith(answer_text(served, "parcels", max_tokens=3)) and len(
        answer_text(served, "parcels", max_tokens=3)
    ) < len(full)
    mark = full[len(full) // 2]
    assert answer_text(served, "parcels", stop=[mark]) == full[: full.index(mark)]


def test_models_lists_every_name(served: Served) -> None:
    names = {model.id for model in client(served).models.list()}
    assert names == {"base", "parcels", "parcels@1", "parcels@base", "sort", "sort@7", "sort@base"}


# errors -----------------------------------------------------------------------------------------------------


def test_a_wrong_key_is_refused_everywhere_but_health(served: Served) -> None:
    with pytest.raises(openai.AuthenticationError, match="the API key is wrong"):
        client(served, "wrong").chat.completions.create(model="parcels", messages=[{"role": "user", "content": "hi"}])
    for path in ("/v1/models", "/version", "/metrics"):
        assert served.server.get(path, key="wrong").status_code == 401
    without_key = httpx.post(served.server.url + "/v1/chat/completions", content=b"{}")
    error = without_key.json()["error"]
    assert without_key.status_code == 401 and "there is no API key" in error["message"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
    health = httpx.get(served.server.url + "/health").json()
    assert health["status"] == "ok" and set(health) == {"status", "identity", "started", "failing_tasks"}


def test_an_unknown_model_is_refused_with_the_known_names(served: Served) -> None:
    with pytest.raises(openai.NotFoundError, match=r"no model 'unknown'; known: base, parcels, parcels@1") as caught:
        answer_text(served, "unknown")
    assert (caught.value.type, caught.value.code) == ("invalid_request_error", "model_not_found")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"hello", "the body is not JSON"),
        ({"messages": []}, "`model` is missing"),
        ({"model": "parcels"}, "`messages` is missing"),
        ({"model": "parcels", "messages": [{"role": "user", "content": "x"}], "temperature": 9}, "`temperature`"),
        ({"model": "parcels", "messages": [{"role": "user", "content": "x " * 4000}]}, "shorten `messages`"),
        (
            {"model": "parcels", "messages": [{"role": "user", "content": "x "}], "top_k": 5},
            "`top_k` is not a parameter",
        ),
    ],
)
def test_a_bad_request_is_refused_with_a_hint(served: Served, body: Any, message: str) -> None:
    response = served.server.post(body)
    assert response.status_code == 400 and message in response.json()["error"]["message"]
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_wrong_sizes_paths_and_methods_are_refused(served: Served) -> None:
    assert served.server.post(b"x" * (5 << 20)).status_code == 413
    missing = served.server.get("/v1/completions")
    assert missing.status_code == 404 and "POST /v1/chat/completions" in missing.json()["error"]["message"]
    assert served.server.get("/v1/chat/completions").status_code == 405


def test_too_many_requests_get_429_with_retry_after(served: Served) -> None:
    engine = served.server.endpoint.supervisor.engine
    engine._max_requests, before = 0, engine._max_requests
    try:
        response = served.server.complete("parcels")
        streamed = served.server.complete("parcels", stream=True)
    finally:
        engine._max_requests = before
    assert response.status_code == streamed.status_code == 429 and int(response.headers["retry-after"]) > 0
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "busy")
    assert served.server.complete("parcels").status_code == 200


@contextmanager
def long_answers(served: Served, make_adapter: MakeAdapter) -> Iterator[None]:
    """Within the block, `parcels` may answer with 1900 tokens."""
    for limit in (1900, LIMIT):
        served.parcels.promote(1, make_adapter(1), max_new_tokens=limit)
        served.server.wait_until(lambda limit=limit: limit_of(served) == limit, "the limit")  # type: ignore[misc]
        if limit == 1900:
            yield


def limit_of(served: Served) -> int:
    return served.server.endpoint.supervisor.table.routes["parcels"].max_new_tokens


def disconnect(served: Served, model: str, stream: bool) -> None:
    """Request a long answer; disconnect after its first chunk, or after 0.2 s without streaming."""
    url, headers = f"{served.server.url}/v1/chat/completions", {"authorization": f"Bearer {KEY}"}
    body = {"model": model, "messages": [{"role": "user", "content": "go on"}], "stream": stream}
    try:
        with httpx.stream("POST", url, json=body, headers=headers, timeout=0.2 + stream) as response:
            next(response.iter_lines())
    except httpx.ReadTimeout:
        assert not stream


@pytest.mark.parametrize("stream", [True, False])
def test_a_disconnected_client_frees_its_slot_and_is_logged(
    served: Served, make_adapter: MakeAdapter, stream: bool
) -> None:
    with long_answers(served, make_adapter):
        before = len(log_lines(served, "parcels"))
        disconnect(served, "parcels", stream)
        served.server.wait_until(lambda: served.server.endpoint.supervisor.busy() == (0, 0), "the slot to be free")
        served.server.wait_until(lambda: len(log_lines(served, "parcels")) > before, "its log line")
    line = log_lines(served, "parcels")[before]
    assert line["status"] == "abandoned" and line["valid"] is None and line["completion"] is None
    assert line["prompt"] == "go on" and line["completion_tokens"] < 1900 and line["queued_seconds"] >= 0
    assert 'finetune_abandoned_total{model="parcels"}' in served.server.get("/metrics").text


def test_max_tokens_cannot_exceed_the_limit_of_the_route(served: Served) -> None:
    response = served.server.complete("parcels", max_tokens=10**30).json()
    assert response["usage"]["completion_tokens"] <= LIMIT


def test_a_bad_sampling_value_fails_its_own_request_only(served: Served) -> None:
    sampling: list[dict[str, Any]] = [{"temperature": 1e-38}, {"top_p": 1e-300, "temperature": 1.0}, {"seed": 2**70}]
    with ThreadPoolExecutor(9) as pool:
        good = [pool.submit(served.server.complete, "parcels") for _ in range(6)]
        bad = [pool.submit(served.server.complete, "parcels", **values) for values in sampling]
    assert {response.result().status_code for response in good} == {200}
    assert [response.result().status_code for response in bad] == [200, 200, 400]
    assert "`seed`" in bad[2].result().json()["error"]["message"]


@pytest.mark.parametrize("text", ["x", "x ", "\u00e9", "<|im_end|>", "\n"])
def test_a_huge_prompt_is_refused_before_tokenization(
    served: Served, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_chat, "encode", lambda *_: pytest.fail("it was tokenized"))
    response = served.server.complete("parcels", text * (600_000 // len(text)))
    assert response.status_code == 400 and "characters" in response.json()["error"]["message"]


def test_health_answers_while_prompts_are_tokenized(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokenization does not block the event loop: this tokenizer waits until /health has answered."""
    answered = threading.Event()

    def slow_encode(tokenizer: Any, messages: Any) -> list[int]:
        assert answered.wait(30)
        return encode(tokenizer, messages)

    monkeypatch.setattr(embedded_chat, "encode", slow_encode)
    with ThreadPoolExecutor(1) as pool:
        response = pool.submit(served.server.complete, "parcels")
        time.sleep(0.2)
        assert httpx.get(served.server.url + "/health", timeout=20).status_code == 200
        answered.set()
        assert response.result().status_code == 200


# invalid answers ---------------------------------------------------------------------------


def test_an_invalid_answer_is_marked(served: Served) -> None:
    response = served.server.complete("sort")
    body = response.json()
    assert response.status_code == 200 and response.headers["x-finetune-valid"] == "false"
    assert body["finetune"]["status"] == "invalid" and "not one of the 2 labels" in body["finetune"]["problem"]


def test_every_policy_for_invalid_answers_takes_effect_without_a_restart(
    served: Served, make_adapter: MakeAdapter
) -> None:
    def policy(name: str) -> None:
        served.sorting.promote(7, make_adapter(2), on_invalid=name)
        served.server.wait_until(
            lambda: served.server.endpoint.supervisor.table.routes["sort"].on_invalid == name, name
        )

    flagged = served.server.complete("sort").json()["choices"][0]["message"]["content"]
    policy("reject")
    before = len(log_lines(served, "sorting"))
    for stream in (False, True):
        rejected = served.server.complete("sort", stream=stream)
        assert rejected.status_code == 422 and "not one of the 2 labels" in rejected.json()["error"]["message"]
    assert [line["status"] for line in log_lines(served, "sorting")[before:]] == ["rejected", "rejected"]
    assert 'finetune_answers_total{model="sort",status="refused"' not in served.server.get("/metrics").text
    policy("base")
    fallback = served.server.complete("sort").json()
    assert fallback["finetune"]["status"] == "fallback"
    assert fallback["choices"][0]["message"]["content"] == answer_text(served, "sort@base")
    policy("retry")
    retried = served.server.complete("sort").json()
    assert retried["choices"][0]["message"]["content"] != flagged and retried["usage"]["completion_tokens"] > LIMIT
    streamed = served.server.complete("sort", stream=True)
    assert streamed.headers["x-finetune-status"] == "invalid"
    assert retried["choices"][0]["message"]["content"] in [
        json.loads(line[6:])["choices"][0]["delta"].get("content")
        for line in streamed.text.splitlines()
        if '"delta"' in line
    ]
    policy("flag")


# traces -----------------------------------------------------------------------------------------------------


def test_every_answer_is_logged_with_its_version(served: Served) -> None:
    before = len(log_lines(served, "parcels"))
    request = served.server.complete("parcels", "mail me at anna@example.com").json()["id"]
    served.server.complete("parcels", stream=True)
    first, second = log_lines(served, "parcels")[before:]
    assert first["request"] == request and first["version"] == 1 and first["key"] == "tests" and first["status"] == "ok"
    assert first["prompt"] == "mail me at <EMAIL>" and first["valid"] is True and not first["stream"]
    assert 0 < first["first_token_seconds"] <= first["seconds"] and first["completion_tokens"] <= LIMIT
    assert second["stream"] and second["adapter"] == first["adapter"]


def test_refused_requests_are_logged_under_their_task(served: Served) -> None:
    before, refused = len(log_lines(served, "parcels")), len(log_lines(served, "_refused"))
    served.server.complete("parcels", "x " * 4000)
    served.server.complete("unknown")
    served.server.post(b"{")
    served.server.post({"model": "parcels", "messages": []}, key="wrong")  # without a valid key: not logged
    (line,) = log_lines(served, "parcels")[before:]
    assert (line["status"], line["code"], line["key"]) == ("refused", "context_length_exceeded", "tests")
    assert line["prompt"] is None and line["version"] == 1
    assert [row["code"] for row in log_lines(served, "_refused")[refused:]] == ["model_not_found", "invalid_json"]


def test_the_time_in_the_queue_is_logged(served: Served) -> None:
    before = len(log_lines(served, "parcels"))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: served.server.complete("parcels"), range(8)))
    rows = log_lines(served, "parcels")[before:]
    assert len(rows) == 8 and all(0 <= row["queued_seconds"] <= row["first_token_seconds"] for row in rows)


def test_only_the_pipeline_may_mark_a_request_as_check(served: Served) -> None:
    before = len(log_lines(served, "parcels"))
    body = {"model": "parcels", "messages": [{"role": "user", "content": "hi"}]}
    refused = served.server.post(body, **{PURPOSE_HEADER: "parity"})
    assert refused.status_code == 403 and PURPOSE_HEADER in refused.json()["error"]["message"]
    served.server.complete("parcels@1")  # a versioned name is traffic as well
    assert [row["model"] for row in log_lines(served, "parcels")[before:]] == ["parcels@1"]


def test_the_log_has_mode_0600(served: Served) -> None:
    served.server.complete("parcels")
    log_lines(served, "parcels")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in traffic_folder("parcels").rglob("*.jsonl")}
    assert modes == {0o600}


def test_checks_are_not_traffic_and_log_text_false_keeps_text_out(served: Served, make_adapter: MakeAdapter) -> None:
    traffic, checks = len(log_lines(served, "parcels")), len(log_lines(served, "parcels", "checks"))
    for model in ("parcels@1", "parcels"):
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
        served.server.post(body, pipeline_key(home()), **{PURPOSE_HEADER: "parity"})
    assert len(log_lines(served, "parcels")) == traffic and len(log_lines(served, "parcels", "checks")) == checks + 2
    served.sorting.promote(7, make_adapter(2), log_text=False)
    served.server.wait_until(lambda: not served.server.endpoint.supervisor.table.routes["sort"].log_text, "log_text")
    served.server.complete("sort")
    assert log_lines(served, "sorting")[-1]["prompt"] is None and log_lines(served, "sorting")[-1]["completion"] is None


def test_metrics_count_by_version(served: Served) -> None:
    def count() -> float:
        prefix = 'finetune_answers_total{model="parcels",status="ok",version="1"}'
        return next(
            (
                float(row.split()[-1])
                for row in served.server.get("/metrics").text.splitlines()
                if row.startswith(prefix)
            ),
            0,
        )

    before = count()
    served.server.complete("parcels")
    assert count() == before + 1


# versions ---------------------------------------------------------------------------------------------------


def test_promotion_and_rollback_during_requests_lose_and_mix_no_answer(
    served: Served, make_adapter: MakeAdapter
) -> None:
    task = declare_task(served, "moving", make_adapter)
    seen: list[tuple[int, str]] = []
    stop = threading.Event()

    def send_requests() -> None:
        while not stop.is_set():
            response = served.server.complete("moving")
            seen.append(
                (
                    response.status_code,
                    response.headers["x-finetune-version"] + response.json()["choices"][0]["message"]["content"],
                )
            )

    threads = [threading.Thread(target=send_requests) for _ in range(3)]
    for thread in threads:
        thread.start()
    task.promote(2, make_adapter(3))
    served.server.wait_until(lambda: {text[0] for _, text in seen} == {"1", "2"}, "an answer of version 2")
    deployment_state.update(task.store, lambda state: transitions.roll_back(state, "2026-02-01", "worse"))
    served.server.wait_until_serves("moving", 1)
    count = len(seen)
    served.server.wait_until(lambda: len(seen) > count + 6, "more answers")
    stop.set()
    for thread in threads:
        thread.join(30)
    assert {status for status, _ in seen} == {200}
    assert len({text for _, text in seen}) == 2  # one answer per version: none is mixed
    assert seen[-1][1][0] == "1"
    engine = served.server.endpoint.supervisor.engine
    served.server.wait_until(
        lambda: task.adapter(make_adapter(3)).content_hash not in {model.adapter for model in engine.models.loaded},
        "the old adapter to be unloaded",
    )


def test_a_challenger_is_served_beside_the_champion(served: Served, make_adapter: MakeAdapter) -> None:
    task = declare_task(served, "trying", make_adapter)
    version = task.version(2, task.adapter(make_adapter(3)))
    deployment_state.update(task.store, lambda state: transitions.add_challenger(state, version))
    served.server.wait_until(lambda: "trying@2" in served.server.endpoint.supervisor.table.routes, "the challenger")
    assert answer_text(served, "trying") == answer_text(served, "trying@1") != answer_text(served, "trying@2")
    deployment_state.update(task.store, lambda state: transitions.remove_challenger(state, version))
    served.server.wait_until(
        lambda: "trying@2" not in served.server.endpoint.supervisor.table.routes, "it to be removed"
    )
    assert served.server.complete("trying@2").status_code == 404


def test_a_damaged_adapter_leaves_the_old_version_in_place_with_an_error(
    served: Served, make_adapter: MakeAdapter
) -> None:
    task = declare_task(served, "broken", make_adapter)
    before = answer_text(served, "broken")
    adapter = task.adapter(make_adapter(3))
    raw = bytearray((adapter.folder / "adapter_model.safetensors").read_bytes())
    raw[-1] ^= 1
    (adapter.folder / "adapter_model.safetensors").write_bytes(raw)
    task.promote(2, make_adapter(3))
    served.server.wait_until(lambda: bool(served.server.status("broken")["errors"]), "the error")
    assert "is not what adapter wrote" in served.server.status("broken")["errors"]["champion"]
    assert answer_text(served, "broken") == before and served.server.status("broken")["champion"]["version"] == 1
    shutil.rmtree(adapter.folder)  # an unreadable deployment state changes nothing either
    (task.store.stage_folder("serve") / "deployment_state.json").write_text("{")
    served.server.wait_until(lambda: "state" in served.server.status("broken")["errors"], "the error")
    assert answer_text(served, "broken") == before
    assert 'finetune_deploy_errors_total{task="broken"} 2.0' in served.server.get("/metrics").text


def test_a_damaged_manifest_affects_one_task_only_and_health_is_degraded(
    served: Served, make_adapter: MakeAdapter
) -> None:
    def health() -> dict[str, Any]:
        body: dict[str, Any] = httpx.get(served.server.url + "/health", timeout=30).json()
        return body

    failing = health()["failing_tasks"]
    task, other = (declare_task(served, name, make_adapter) for name in ("damaged", "intact"))
    adapter = task.adapter(make_adapter(3))
    (adapter.folder / "manifest.json").write_text('{"content": "' + adapter.content_hash + '"}')
    deployment_state.update(task.store, lambda s: transitions.promote(s, task.version(2, adapter), s.champion))
    other.promote(2, make_adapter(3))
    served.server.wait_until_serves("intact", 2)
    served.server.wait_until(lambda: bool(served.server.status("damaged")["errors"]), "the error")
    assert "manifest.json is damaged" in served.server.status("damaged")["errors"]["champion"]
    assert served.server.complete("damaged").headers["x-finetune-version"] == "1"
    assert health()["status"] == "degraded" and health()["failing_tasks"] == failing + 1
    deployment_state.state_file(task.store).write_text('{"champion": 5, "previous": 7}')
    served.server.wait_until(lambda: "state" in served.server.status("damaged")["errors"], "the error")
    state: dict[str, Any] = {"champion": {**asdict(task.version(3, adapter)), "adapter": ["x"]}, "challenger": None}
    state |= {"previous": [], "held": {}, "history": []}
    deployment_state.state_file(task.store).write_text(json.dumps(state))  # a value of an unexpected type
    served.server.wait_until(lambda: "TypeError" in served.server.status("damaged")["errors"]["state"], "the error")
    other.promote(3, make_adapter(2))
    served.server.wait_until_serves("intact", 3)
    assert served.server.complete("damaged").status_code == served.server.complete("intact").status_code == 200
    shutil.rmtree(Path(str(task.store.root)))
    served.server.wait_until(lambda: health()["failing_tasks"] == failing, "it to be removed")


def test_two_tasks_cannot_have_one_name(served: Served, make_adapter: MakeAdapter) -> None:
    before = answer_text(served, "sort")
    task = declare_task(served, "sorting_copy", make_adapter, serve={"alias": "sort"}, wait=False)
    served.server.wait_until(lambda: "name" in served.server.status("sorting_copy").get("errors", {}), "the error")
    assert "'sort' is taken" in served.server.status("sorting_copy")["errors"]["name"]
    assert answer_text(served, "sort") == before
    shutil.rmtree(Path(str(task.store.root)))


def declare_task(served: Served, name: str, make_adapter: MakeAdapter, wait: bool = True, **sections: Any) -> Deployed:
    root = Path(str(served.parcels.store.root)).parent
    task = declare(root, name, Path(str(served.parcels.task.base.path)), **sections)
    task.promote(1, make_adapter(4))
    served.server.wait_until(lambda: name in served.server.endpoint.supervisor.table.tasks, name)
    if wait:
        served.server.wait_until_serves(name, 1)
    return task
