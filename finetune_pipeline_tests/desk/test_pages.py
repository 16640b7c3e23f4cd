"""All pages through the app: access, content, and rejected requests."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute
from starlette.testclient import TestClient

from finetune_pipeline.desk import files, ledger, ledger_rows, login, review, security_headers, settings, tasks
from finetune_pipeline.desk.app import create_app
from finetune_pipeline.desk.users import add_user
from finetune_pipeline.records import Example, Message, write_jsonl
from finetune_pipeline.review.verdict_store import verdicts_folder

from .conftest import PASSWORD, sign_in, token
from .sample_tasks import declare, example, make

PUBLIC_PATHS = {"/login"}
MARKUP = '<script>alert("x")</script><img src=x onerror=alert(1)>'


def addresses() -> list[tuple[str, str]]:
    """(method, path) of every route, with values for its parameters."""
    filled = {"task": "parcels", "asset": "eval_report", "path": "index.html"}
    routes = []
    for module in (files, ledger, login, review, settings, tasks):
        for route in module.router.routes:
            if isinstance(route, APIRoute) and route.path not in PUBLIC_PATHS:
                path = re.sub(r"\{(\w+)(?::path)?\}", lambda match: filled[match[1]], route.path)
                routes += [(method, path) for method in route.methods or ()]
    return routes


def test_every_page_requires_a_login(client: TestClient) -> None:
    make("parcels", until="review_sample")
    assert len(addresses()) >= 10, addresses()
    paths = ["/", "/tasks/parcels", "/tasks/parcels/quality", "/tasks/parcels/ledger", "/tasks/parcels/review"]
    paths += ["/tasks/parcels/reports/data_quality", "/tasks/parcels/reports/eval_report"]
    paths += ["/tasks/parcels/reports/eval_report/report.html", "/tasks/nothing"]
    for path in [*paths, *(path for method, path in addresses() if method == "GET")]:
        answer = client.get(path)
        assert answer.status_code == 303 and answer.headers["location"].startswith("/login"), path
    for path in ["/logout", "/tasks/parcels/review", "/tasks/parcels/review/undo"]:
        answer = client.post(path, data={"csrf": token(client, "/login")})
        assert answer.status_code == 303 and answer.headers["location"].startswith("/login"), path


def test_login_returns_to_the_requested_page(client: TestClient) -> None:
    make("parcels")
    location = client.get("/tasks/parcels/review?row=1").headers["location"]
    assert location == "/login?next=%2Ftasks%2Fparcels%2Freview%3Frow%3D1"
    data = {"name": "anna", "password": PASSWORD, "next": "/tasks/parcels", "csrf": token(client, location)}
    assert client.post("/login", data=data).headers["location"] == "/tasks/parcels"
    data = {**data, "next": "https://evil.example/", "csrf": token(client, "/login")}
    assert client.post("/login", data=data).headers["location"] == "/"


def test_a_wrong_password_is_delayed_and_reveals_nothing(client: TestClient) -> None:
    data = {"name": "anna", "password": "wrong", "csrf": token(client, "/login")}
    answers = [client.post("/login", data=data) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [401, 401, 401, 429]
    assert int(answers[3].headers["retry-after"]) >= 1
    unknown = client.post("/login", data={**data, "name": "nobody"})
    assert unknown.status_code == 401, "failures of one name do not delay another, until they are many"
    answers = [client.post("/login", data={**data, "name": f"user{n}"}) for n in range(20)]
    assert answers[-1].status_code == 429


def test_guessing_does_not_lock_a_user_out(place: Path) -> None:
    app = create_app()
    with TestClient(app, base_url="http://127.0.0.1", client=("203.0.113.9", 1)) as attacker:
        data = {"name": "anna", "password": "wrong", "csrf": token(attacker, "/login")}
        for _ in range(10):
            answer = attacker.post("/login", data=data)
        assert answer.status_code == 429
    home = TestClient(app, base_url="http://127.0.0.1", client=("192.0.2.7", 1), follow_redirects=False)
    with home as client:
        assert sign_in(client).get("/").status_code == 200


def test_the_cookie_is_httponly_and_secure_over_https(client: TestClient) -> None:
    plain = client.get("/login").headers["set-cookie"].lower()
    assert "httponly" in plain and "samesite=lax" in plain and "secure" not in plain
    client.cookies.clear()
    assert "secure" in client.get("https://127.0.0.1/login").headers["set-cookie"].lower()


def test_a_forged_cookie_and_an_old_session_are_invalid(client: TestClient) -> None:
    sign_in(client)
    assert client.get("/").status_code == 200
    add_user("anna", PASSWORD + " new")
    assert client.get("/").status_code == 303
    client.cookies.set("finetune_desk", "eyJ1c2VyIjogImFubmEifQ==.forged.signature")
    assert client.get("/").status_code == 303


def test_signing_out_ends_the_session(client: TestClient) -> None:
    sign_in(client)
    copied = client.cookies["finetune_desk"]
    assert client.post("/logout", data={"csrf": token(client, "/")}).headers["location"] == "/login"
    assert client.get("/").status_code == 303
    for _ in range(2):  # a visit to a page without login does not restore the session
        client.cookies.clear()
        client.cookies.set("finetune_desk", copied)
        assert client.get("/").status_code == 303
        assert "Signed in as" not in client.get("/login").text
        assert client.get("/").status_code == 303


def test_shortcuts_are_switched_off_per_user_and_saved(client: TestClient) -> None:
    make("parcels")
    page = "/tasks/parcels/review"
    text = sign_in(client).get(page).text
    assert 'data-shortcuts="off"' not in text and "Switch them off" in text and "<kbd>S</kbd> skip" in text
    data = {"csrf": token(client, page), "on": "no", "next": page}
    assert client.post("/settings/shortcuts", data=data).headers["location"] == page
    assert client.post("/settings/shortcuts", data={**data, "next": "//evil.example"}).headers["location"] == "/"
    assert client.post("/settings/shortcuts", data={**data, "csrf": "x"}).status_code == 403
    client.cookies.clear()
    text = sign_in(client).get(page).text
    assert 'data-shortcuts="off"' in text and "Switch them on" in text and "<kbd>S</kbd> skip" not in text
    assert 'data-shortcuts="off"' not in sign_in(client, "bert").get(page).text


PERSONAL = "please write to jane.doe@example.com or call +44 20 7946 0018"


def test_personal_data_of_raw_rows_is_masked_on_every_page(client: TestClient) -> None:
    """Raw rows contain personal data; the ledger and the quality page show their texts."""
    answer = "Ask for Mr Smith, +44 20 7946 0018, bob.roe@example.com"
    rows = [
        Example(
            f"row{n}",
            (Message("user", f"{PERSONAL} {n}"), Message("assistant", answer)),
            "shop",
            f"shop.csv:{n}",
            rejected=f"Mail bob.roe@example.com {n}",
        )
        for n in range(120)
    ]
    _, store = make("parcels", rows=rows, until="data_quality", passed={"data_quality": False})
    raw = store.current("raw_examples")
    assert raw is not None
    with store.scratch("clean_examples") as out:
        drop = {
            "id": "row5",
            "origin": "shop.csv:5",
            "stage": "clean",
            "reason": "invalid-completion",
            "detail": PERSONAL,
        }
        (out / "drops.jsonl").write_text(json.dumps(drop) + "\n")
        fix = {"id": "row6", "origin": "shop.csv:6", "stage": "clean", "rule": "pii-email", "detail": "1 time"}
        (out / "fixes.jsonl").write_text(json.dumps(fix) + "\n")
        write_jsonl(out / "examples.jsonl", rows)
        store.commit("clean_examples", "newer", out, {"inputs": {"raw_examples": raw.content_hash}, "summary": {}})
    sign_in(client)
    for path, rows_shown in (("/ledger?why=invalid-completion", 1), ("/ledger?kind=fixed", 1), ("/quality", 3)):
        text = client.get(f"/tasks/parcels{path}").text
        assert not [word for word in ("jane.doe", "bob.roe", "7946") if word in text], path
        assert text.count("please write to &lt;EMAIL&gt; or call &lt;PHONE&gt;") >= rows_shown, path
        assert ("Rejected answer" in text and "Mail &lt;EMAIL&gt;" in text) is path.startswith("/ledger")


def test_rows_are_read_by_offset_without_scanning_the_file_again(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, store = make("parcels", rows=[example(n) for n in range(600)], until="clean_examples")
    raw = store.current("raw_examples")
    assert raw is not None
    ids = [row.id for row in raw.examples()][-3:]
    assert [text.prompt for text in ledger_rows.texts(raw, ids).values()] == [
        row.prompt for row in raw.examples() if row.id in ids
    ]
    read = 0
    plain = json.loads

    def counted(text: Any, **options: Any) -> Any:
        nonlocal read
        read += 1
        return plain(text, **options)

    monkeypatch.setattr("finetune_pipeline.desk.ledger_rows.json.loads", counted)
    assert len(ledger_rows.texts(raw, [*ids, "unknown"])) == 3
    assert read == 3
    assert ledger_rows.row_offsets.cache_info().hits > 0


def test_texts_have_automatic_direction(client: TestClient) -> None:
    rows = [
        Example(
            f"row{n}", (Message("user", "أين طلبي؟"), Message("assistant", example(0).completion)), "shop", "shop.csv:1"
        )
        for n in range(30)
    ]
    make("parcels", rows=rows)
    text = sign_in(client).get("/tasks/parcels/review").text
    assert '<p class="text prompt" dir="auto">أين طلبي؟</p>' in text
    edit = client.get("/tasks/parcels/review?row=row3&edit=1").text
    assert all('dir="auto"' in tag for tag in re.findall(r"<(?:input(?! type=)|textarea)[^>]*>", edit))


def test_the_quality_report_has_its_own_page(client: TestClient) -> None:
    make("parcels", until="data_quality")
    assert sign_in(client).get("/tasks/parcels/reports/data_quality").headers["location"] == "/tasks/parcels/quality"


@pytest.mark.parametrize("sent", [None, "", "guessed"])
def test_forms_without_the_csrf_token_are_rejected(client: TestClient, sent: str | None) -> None:
    _, store = make("parcels")
    sign_in(client)
    data = {} if sent is None else {"csrf": sent}
    for path in ("/login", "/logout", "/tasks/parcels/review", "/tasks/parcels/review/undo"):
        assert client.post(path, data={**data, "decision": "approve"}).status_code == 403, path
    assert not verdicts_folder(store).exists()
    assert client.get("/").status_code == 200, "the user is still signed in"


def test_every_response_has_the_security_headers(client: TestClient) -> None:
    sign_in(client)
    for path in ("/", "/login", "/nowhere", "/static/desk.css", "/static/nothing.css"):
        answer = client.get(path)
        assert answer.headers["content-security-policy"] == security_headers.DESK, path
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
    assert "unsafe" not in security_headers.DESK and "frame-ancestors 'self'" in security_headers.DESK


def test_large_and_chunked_bodies_are_rejected(client: TestClient) -> None:
    assert client.post("/login", data={"name": "x" * 1_100_000}).status_code == 413
    assert client.post("/login", content=iter([b"name=", b"x"])).status_code == 413


def test_no_page_has_external_or_inline_resources(client: TestClient) -> None:
    make("parcels", until="registered_model")
    sign_in(client)
    for path in ("/", "/tasks/parcels", "/tasks/parcels/quality", "/tasks/parcels/ledger", "/tasks/parcels/review"):
        text = client.get(path).text
        assert not re.search(r"(?:src|href|action)=[\"'](?:https?:)?//", text), path
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?! src=\"/static/desk.js\")", text), path


def test_the_front_page_shows_all_tasks_with_invalid_ones(client: TestClient) -> None:
    make("parcels")
    declare("broken", {"answer": {"format": "jsn"}, "clen": {}})
    text = sign_in(client).get("/").text
    assert "12 rows to review" in text and "Did you mean `clean`?" in text and "answer.format" in text
    answer = client.get("/tasks/broken")
    assert answer.status_code == 409 and "The declaration is invalid" in answer.text
    assert client.get("/tasks/broken/review").status_code == 409
    assert "Did you mean" in client.get("/tasks/broken/review").text


def test_empty_pages_explain_what_will_appear(client: TestClient) -> None:
    assert "No tasks yet" in sign_in(client).get("/").text
    declare("fresh")
    assert "No rows have been read yet" in client.get("/tasks/fresh").text
    assert "There is nothing to review yet" in client.get("/tasks/fresh/review").text
    assert "has not been checked yet" in client.get("/tasks/fresh/quality").text
    assert "The ledger is empty" in client.get("/tasks/fresh/ledger").text


def test_the_page_of_a_finished_task(client: TestClient) -> None:
    make("parcels", until="traffic_report")
    text = sign_in(client).get("/tasks/parcels").text
    for expected in (
        "Near duplicate",
        "dropped 17.9 %",
        "Promoted",
        "84 %",
        "version <strong>3",
        "12 of 12 rows reviewed",
        "1,240",
        "How can I help",
    ):
        assert expected in text, expected
    assert "not every row is accounted for" not in text


def test_the_quality_page_names_failing_rows(client: TestClient) -> None:
    make("parcels", until="data_quality", passed={"data_quality": False})
    text = sign_in(client).get("/tasks/parcels/quality").text
    assert "The quality gate failed" in text and "Answer not in the declared format" in text
    assert "wheres my kettle" in text and "shop.csv:2" in text


def test_the_ledger_filters_and_pages(client: TestClient) -> None:
    make("parcels", rows=[example(number) for number in range(400)], until="clean_examples")
    sign_in(client)
    all_rows = client.get("/tasks/parcels/ledger").text
    assert "1 to 50 of 71" in all_rows and "Page 1 of 2" in all_rows and "dropped when it was read" in all_rows
    assert "51 to 71 of 71" in client.get("/tasks/parcels/ledger?at=2").text
    assert "51 to 71 of 71" in client.get("/tasks/parcels/ledger?at=99").text
    filtered = client.get("/tasks/parcels/ledger?why=contradiction").text
    assert "1 to 13 of 13" in filtered and "like shop.csv:2" in filtered
    fixed = client.get("/tasks/parcels/ledger?kind=fixed&why=html").text
    assert "1 to 5 of 5" in fixed
    assert "No row has this reason" in client.get("/tasks/parcels/ledger?why=nothing").text
    assert client.get("/tasks/parcels/ledger?kind=other").status_code == 400
    assert client.get("/tasks/parcels/ledger?at=x").status_code == 400


def test_markup_in_rows_is_escaped_on_every_page(client: TestClient) -> None:
    answer = '{"intent": "delivery", "priority": "low", "product": null, "order": null}'
    rows = [
        Example(f"row{n}", (Message("user", f"{MARKUP} {n}"), Message("assistant", answer)), MARKUP, f"{MARKUP}:{n}")
        for n in range(120)
    ]
    make("parcels", rows=rows, until="registered_model")
    sign_in(client)
    for path in (
        "",
        "/ledger",
        "/quality",
        "/review",
        "/review?row=row1",
        "/review?row=row1&edit=1",
        f"/ledger?why={MARKUP}",
    ):
        text = client.get(f"/tasks/parcels{path}").text
        assert "<script>alert" not in text and "<img src=x" not in text, path
    assert "&lt;script&gt;alert" in client.get("/tasks/parcels/review?row=row1").text
    assert MARKUP not in client.get(f"/tasks/{MARKUP}").text


def test_reports_are_sandboxed(client: TestClient) -> None:
    make("parcels", until="registered_model")
    sign_in(client)
    report = client.get("/tasks/parcels/reports/eval_report/report.html")
    assert report.status_code == 200 and report.headers["content-security-policy"] == security_headers.REPORT
    assert security_headers.REPORT.startswith("sandbox;") and "script" not in security_headers.REPORT
    quality = client.get("/tasks/parcels/reports/data_quality/report.html")
    assert quality.status_code == 200 and quality.headers["content-security-policy"] == security_headers.REPORT
    frame = client.get("/tasks/parcels/reports/eval_report").text
    assert '<iframe class="report" src="/tasks/parcels/reports/eval_report/report.html"' in frame
    tokens = "/tasks/parcels/reports/adapter/tokens.html"
    assert client.get(tokens).headers["content-security-policy"] == security_headers.REPORT
    frame = client.get("/tasks/parcels/reports/adapter?page=tokens.html").text
    assert f'src="{tokens}" title="What is learned' in frame
    assert '<a href="/tasks/parcels/reports/adapter">Training</a>' in frame
    assert 'src="/tasks/parcels/reports/adapter/training.html"' in client.get("/tasks/parcels/reports/adapter").text
    assert client.get("/tasks/parcels/reports/adapter?page=training.json").status_code == 404
    task = client.get("/tasks/parcels").text
    for path in ("adapter", "adapter?page=tokens.html"):
        assert f'href="/tasks/parcels/reports/{path}"' in task
    document = client.get("/tasks/parcels/reports/suitability_report").text
    assert "<strong>Yes.</strong>" in document and "&lt;script&gt;" in document and "<td>enough</td>" in document


@pytest.mark.parametrize(
    "path",
    [
        "reports/data_quality/../verdict.json",
        "reports/data_quality/..%2fverdict.json",
        "reports/data_quality/%2e%2e/manifest.json",
        "reports/data_quality/..%2f..%2f..%2f..%2ftask.yaml",
        "reports/data_quality//etc/passwd",
        "reports/data_quality/%2fetc%2fpasswd",
        "reports/data_quality/rows.jsonl",
        "reports/eval_report/..%2f..%2ftask.yaml",
        "reports/eval_report/manifest.json",
        "reports/clean_examples/examples.jsonl",
        "reports/..%2f..%2fhome",
        "reports/nothing",
    ],
)
def test_only_reports_are_served(client: TestClient, path: str) -> None:
    make("parcels", until="registered_model")
    answer = sign_in(client).get(f"/tasks/parcels/{path}")
    assert answer.status_code == 404, path


def test_a_symlink_out_of_the_report_is_not_followed(client: TestClient) -> None:
    _, store = make("parcels", until="data_quality")
    artifact = store.current("data_quality")
    assert artifact is not None
    page = artifact.path("report.html")
    page.unlink()
    page.symlink_to("/etc/hostname")
    assert sign_in(client).get("/tasks/parcels/reports/data_quality/report.html").status_code == 404


@pytest.mark.parametrize(
    "path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fusers.py", "/tasks/..%2f.."]
)
def test_source_files_are_not_served(client: TestClient, path: str) -> None:
    assert sign_in(client).get(path).status_code == 404


def test_an_unknown_task_is_404(client: TestClient) -> None:
    make("parcels")
    answer = sign_in(client).get("/tasks/other")
    assert answer.status_code == 404 and "There is no task named “other”" in answer.text


def test_a_damaged_artifact_is_shown_with_a_hint(client: TestClient) -> None:
    _, store = make("parcels")
    sample = store.current("review_sample")
    assert sample is not None
    sample.path("manifest.json").write_text("{")
    sign_in(client)
    for path in ("/", "/tasks/parcels", "/tasks/parcels/review"):
        answer = client.get(path)
        assert answer.status_code in (200, 409) and "is damaged" in answer.text and "and run again" in answer.text, path
        assert "declaration is invalid" not in answer.text, path
    assert "The task cannot be read" in client.get("/tasks/parcels").text


def test_a_damaged_file_of_one_task_does_not_hide_the_others(client: TestClient) -> None:
    _, damaged = make("damaged", until="release_decision", passed={"release_decision": False})
    make("parcels")
    decision = damaged.current("release_decision")
    assert decision is not None
    sign_in(client)
    for path, content in (
        (decision.folder.parent / "current", b"../x"),
        (decision.path("decision.json"), b"[]"),
        (Path(str(damaged.root)) / "11_serve" / "deployment_state.json", b"\xff"),
    ):
        before = path.read_bytes() if path.exists() else None
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        answer = client.get("/")
        assert answer.status_code == 200, path
        assert f"{path.name} is damaged" in answer.text and "parcels" in answer.text
        path.write_bytes(before) if before is not None else path.unlink()
