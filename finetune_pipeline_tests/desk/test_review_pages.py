"""The review through its forms, as a browser without JavaScript sends them."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from finetune_pipeline.desk import review as routes
from finetune_pipeline.desk.review_session import open_review
from finetune_pipeline.materialize import open_task
from finetune_pipeline.records import Example, Message, Review
from finetune_pipeline.review import verdict_store
from finetune_pipeline.review.edits import Edits
from finetune_pipeline.review.rounds import Round
from finetune_pipeline.store import TaskStore

from .conftest import hidden, sign_in, token
from .sample_tasks import example, make

PAGE = "/tasks/parcels/review"
NAMES = ("anna", "bert")


def saved(store: TaskStore) -> list[Review]:
    task, _ = open_task("parcels")
    sample = store.current("review_sample")
    assert sample is not None
    return verdict_store.load(store, task, sample)


def record_verdict(client: TestClient, decision: str, page: str = PAGE, **fields: str) -> str:
    """Send the form of a page; returns the text of the page that follows."""
    text = client.get(page).text
    data = {name: hidden(text, name) for name in ("csrf", "row", "content_hash")}
    answer = client.post(PAGE, data={**data, "decision": decision, **fields})
    assert answer.status_code == 303, answer.text
    return client.get(answer.headers["location"]).text


def test_a_sample_is_reviewed_row_by_row(client: TestClient) -> None:
    _, store = make("parcels")
    sign_in(client)
    text = client.get(PAGE).text
    assert "0 of 12 reviewed" in text and "wheres my kettle" in text
    for _ in range(11):
        text = record_verdict(client, "approve")
    assert "11 of 12 reviewed" in text and "Approved row 11." in text
    text = record_verdict(client, "reject", note="not a customer message")
    assert "The review is complete" in text and "The review gate will fail" in text and "not a customer message" in text
    reviews = saved(store)
    assert [review.decision for review in reviews] == ["approve"] * 11 + ["reject"]
    assert {review.reviewer for review in reviews} == {"anna"}
    assert reviews[0].content_hash == example(0).content_hash


def test_an_approved_sample_shows_what_is_next(client: TestClient) -> None:
    make("parcels")
    sign_in(client)
    for _ in range(12):
        text = record_verdict(client, "approve")
    assert "The review gate will pass" in text and "The next run of the pipeline drops the rejected rows" in text


def test_skip_back_and_undo(client: TestClient) -> None:
    _, store = make("parcels")
    sign_in(client)
    first, second, last = example(0), example(1), example(11)
    assert "Row 2 of 12" in client.get(f"{PAGE}?after={first.id}").text
    assert "Row 1 of 12" in client.get(f"{PAGE}?after={last.id}").text
    record_verdict(client, "approve")
    assert f"{PAGE}?row={first.id}" in client.get(PAGE).text, "the link back leads to the row before"
    again = client.get(f"{PAGE}?row={first.id}").text
    assert ": approved. A new verdict replaces it." in again
    record_verdict(client, "reject", page=f"{PAGE}?row={first.id}")
    assert [(review.id, review.decision) for review in saved(store)] == [(first.id, "reject")]
    answer = client.post(f"{PAGE}/undo", data={"csrf": token(client, PAGE)})
    assert answer.headers["location"] == f"{PAGE}?row={first.id}"
    assert saved(store) == []
    assert client.post(f"{PAGE}/undo", data={"csrf": token(client, PAGE)}).headers["location"] == PAGE
    assert "There is no verdict to undo" in client.get(PAGE).text
    assert second.id in client.get(f"{PAGE}?row={second.id}").text


def test_an_invalid_edit_shows_its_error_and_is_not_saved(client: TestClient) -> None:
    _, store = make("parcels")
    sign_in(client)
    text = client.get(f"{PAGE}?row={example(0).id}&edit=1").text
    data = {name: hidden(text, name) for name in ("csrf", "row", "content_hash", "decision")}
    fields = {"field:intent": '"refund"', "field:priority": '"low"', "field:product": "null", "field:order": "12"}
    answer = client.post(PAGE, data={**data, **fields, "note": "wrong order"})
    assert answer.status_code == 422
    assert (
        "does not match" in answer.text
        and 'aria-invalid="true"' in answer.text
        and 'value="wrong order"' in answer.text
    )
    assert saved(store) == []
    answer = client.post(PAGE, data={**data, **fields, "field:order": "", "note": "no order"})
    assert answer.status_code == 303
    (review,) = saved(store)
    assert review.decision == "edit" and review.note == "no order"
    assert review.completion == '{"intent": "refund", "priority": "low", "product": null, "order": null}'


def test_labels_are_edited_with_a_list(client: TestClient) -> None:
    rows = [example(number).with_completion("delivery") for number in range(30)]
    _, store = make("parcels", rows=rows, sections={"answer": {"format": "label", "labels": ["delivery", "other"]}})
    sign_in(client)
    assert '<option value="&#34;other&#34;">other</option>' in client.get(f"{PAGE}?row={rows[0].id}&edit=1").text
    record_verdict(client, "edit", **{"field:whole answer": '"other"'})
    assert [review.completion for review in saved(store)] == ["other"]


def test_a_verdict_on_changed_data_is_not_saved(client: TestClient) -> None:
    _, store = make("parcels")
    sign_in(client)
    text = client.get(PAGE).text
    data = {name: hidden(text, name) for name in ("csrf", "row", "content_hash")}
    with store.scratch("review_sample") as out:
        changed = example(0).with_completion('{"intent": "refund", "priority": "low", "product": null, "order": null}')
        (out / "sample.jsonl").write_text(json.dumps(changed.to_json()) + "\n")
        (out / "round.json").write_text(
            json.dumps(Round(drawn=frozenset({(changed.id, changed.content_hash)})).to_json())
        )
        store.commit("review_sample", "newer", out, {"summary": {"of": 120}, "inputs": {}, "verdict": None})
    answer = client.post(PAGE, data={**data, "decision": "approve"})
    assert answer.headers["location"] == f"{PAGE}?row={example(0).id}"
    text = client.get(answer.headers["location"]).text
    assert "your verdict was not saved" in text and "refund" in text
    gone = client.post(PAGE, data={**data, "row": example(5).id, "decision": "approve"})
    assert gone.headers["location"] == PAGE
    assert saved(store) == []
    assert client.get(f"{PAGE}?row={example(5).id}").status_code == 404


def test_two_reviewers_do_not_see_each_others_verdicts(client: TestClient) -> None:
    _, store = make("parcels", sections={"review": {"min_rows": 12, "reviewers": 2}})
    sign_in(client)
    for _ in range(12):
        text = record_verdict(client, "reject", note="note of anna")
    assert "Your part is done" in text and "12 rows still need another expert" in text
    sign_in(client, "bert")
    text = client.get(PAGE).text
    assert "0 of 12 reviewed" in text and "note of anna" not in text and "Row 1 of 12" in text
    record_verdict(client, "approve")
    assert {(review.reviewer, review.decision) for review in saved(store)} == {("anna", "reject"), ("bert", "approve")}


def test_a_row_that_another_reviewer_finished_gets_no_further_verdict(client: TestClient) -> None:
    _, store = make("parcels")
    sign_in(client)
    text = client.get(f"{PAGE}?row={example(0).id}&edit=1").text
    data = {name: hidden(text, name) for name in ("csrf", "row", "content_hash")}
    row = example(0)
    verdict_store.save(store, Review(row.id, row.content_hash, "bert", "reject", "2026-01-05T10:00:00+00:00"))
    answers = [
        client.post(PAGE, data={**data, "decision": "approve"}),
        client.post(PAGE, data={**data, "decision": "reject", "note": "my careful note"}),
        client.post(PAGE, data={**data, "decision": "edit", "field:order": "HV-77777", "note": "a long remark"}),
    ]
    assert [answer.status_code for answer in answers] == [409, 409, 409]
    assert all("Your verdict was not saved: bert reviewed this row meanwhile" in answer.text for answer in answers)
    assert "my careful note" in answers[1].text
    assert "HV-77777" in answers[2].text and "a long remark" in answers[2].text
    assert [(review.reviewer, review.decision) for review in saved(store)] == [("bert", "reject")]
    text = client.get(f"{PAGE}?row={row.id}").text
    assert "Reviewed by bert" in text and 'value="approve"' not in text
    assert f"{PAGE}?after={row.id}" in text


def test_a_reviewer_can_change_a_verdict(client: TestClient) -> None:
    _, store = make("parcels")
    sign_in(client)
    record_verdict(client, "approve")
    record_verdict(client, "reject", page=f"{PAGE}?row={example(0).id}")
    assert [(review.reviewer, review.decision) for review in saved(store)] == [("anna", "reject")]


def test_of_two_simultaneous_verdicts_one_is_saved(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both reviewers have the row open and send at once: one verdict is saved, the other rejected. Opening the review
    is slowed down, so that both requests overlap."""

    def slow_open(*arguments: str, open_session: Any = open_review) -> Any:
        session = open_session(*arguments)
        time.sleep(0.3)
        return session

    monkeypatch.setattr(routes, "open_review", slow_open)
    _, store = make("parcels")
    texts = {}
    clients = {name: TestClient(client.app, base_url="http://127.0.0.1", follow_redirects=False) for name in NAMES}
    for name, browser in clients.items():
        texts[name] = sign_in(browser, name).get(PAGE).text
    barrier = threading.Barrier(2)

    def send(name: str) -> int:
        data = {field: hidden(texts[name], field) for field in ("csrf", "row", "content_hash")}
        barrier.wait()
        return clients[name].post(PAGE, data={**data, "decision": "approve"}).status_code

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(send, NAMES)) == [303, 409]
    assert len(saved(store)) == 1


def test_an_earlier_message_with_the_text_of_the_prompt_is_shown(client: TestClient) -> None:
    turns = (
        Message("user", "Where is it?"),
        Message("assistant", "Which order?"),
        Message("user", "Where is it?"),
        Message("assistant", example(0).completion),
    )
    rows = [Example(f"row{n}", turns, "shop", f"shop.csv:{n}") for n in range(30)]
    make("parcels", rows=rows)
    text = sign_in(client).get(f"{PAGE}?row=row0").text
    assert text.count("Earlier prompt") == 1 and text.count("Earlier answer") == 1
    assert text.count("Where is it?") == 2


@pytest.mark.parametrize("value", ["[" * 100_000, '"\\ud800"', "9" * 5000, "NaN", "{"])
def test_an_answer_that_is_not_json_is_an_error_of_the_form(client: TestClient, value: str) -> None:
    schema = {"type": "object", "properties": {"extra": {"type": ["object", "array", "string"]}}}
    rows = [example(n).with_completion('{"extra": {}}') for n in range(30)]
    _, store = make("parcels", rows=rows, sections={"answer": {"format": "json", "schema": schema}})
    text = sign_in(client).get(f"{PAGE}?row={rows[0].id}&edit=1").text
    data = {name: hidden(text, name) for name in ("csrf", "row", "content_hash", "decision")}
    answer = client.post(PAGE, data={**data, "field:extra": value})
    assert answer.status_code == 422, answer.text[:300]
    assert saved(store) == []


def test_recorded_verdicts_are_shown(client: TestClient) -> None:
    _, store = make(
        "parcels", sections={"review": {"min_rows": 12, "recorded": "review/verdicts.jsonl"}}, until="clean_examples"
    )
    folder = Path(str(store.root)) / "review"
    folder.mkdir()
    rows = [Review(example(n).id, example(n).content_hash, "carla", "approve", "2026-01-01") for n in range(12)]
    (folder / "verdicts.jsonl").write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
    make("parcels", sections={"review": {"min_rows": 12, "recorded": "review/verdicts.jsonl"}})
    text = sign_in(client).get(PAGE).text
    assert "The review is complete" in text and "12 of 12 verdicts are recorded ones" in text


def test_an_unknown_decision_is_rejected(client: TestClient) -> None:
    _, store = make("parcels")
    sign_in(client)
    text = client.get(PAGE).text
    data = {name: hidden(text, name) for name in ("csrf", "row", "content_hash")}
    assert client.post(PAGE, data={**data, "decision": "perhaps"}).status_code == 400
    assert saved(store) == []


def text_task() -> TaskStore:
    """A task with text answers, in which a correction may contain anything."""
    rows = [example(number).with_completion(f"we will look into it, case {number}") for number in range(30)]
    sections = {"answer": {"format": "text"}, "quality": {"min_rows": 20, "max_completion_chars": 80}}
    return make("parcels", rows=rows, sections=sections)[1]


def test_personal_data_in_a_correction_or_a_note_is_masked_before_it_is_saved(client: TestClient) -> None:
    store = text_task()
    sign_in(client)
    row = example(0).id
    text = record_verdict(
        client,
        "edit",
        page=f"{PAGE}?row={row}&edit=1",
        note="jo@example.com confirmed it",
        **{"field:whole answer": "write to jo@example.com"},
    )
    assert "Personal data was replaced in your text." in text
    (review,) = saved(store)
    assert (review.completion, review.note) == ("write to <EMAIL>", "<EMAIL> confirmed it")
    files = "".join(path.read_text("utf-8") for path in (Path(str(store.root)) / "review").rglob("*.json"))
    assert "jo@example.com" not in files


def test_a_correction_that_cleaning_would_drop_is_rejected_with_the_reason(client: TestClient) -> None:
    store = text_task()
    sign_in(client)
    text = client.get(f"{PAGE}?row={example(0).id}&edit=1").text
    data = {name: hidden(text, name) for name in ("csrf", "row", "content_hash", "decision")}
    for edit, reason in (("x" * 81, "at most 80 characters"), ("\u200b", "Empty answer")):
        answer = client.post(PAGE, data={**data, "field:whole answer": edit})
        assert answer.status_code == 422
        assert reason in answer.text
    assert saved(store) == []


def test_a_correction_without_a_change_approves(client: TestClient) -> None:
    store = text_task()
    sign_in(client)
    page = f"{PAGE}?row={example(0).id}&edit=1"
    record_verdict(client, "edit", page=page, **{"field:whole answer": "we will look into it, case 0"})
    assert [review.decision for review in saved(store)] == ["approve"]


def test_the_first_verdict_starts_a_round_and_the_page_shows_its_number(client: TestClient) -> None:
    _, store = make("parcels")
    sign_in(client)
    record_verdict(client, "approve")
    rounds = Path(str(store.root)) / "review" / "rounds"
    assert [path.name for path in rounds.iterdir()] == ["1.json"]
    rows = [example(number) for number in range(40, 52)]
    with store.scratch("review_sample") as out:
        (out / "sample.jsonl").write_text("".join(json.dumps(row.to_json()) + "\n" for row in rows))
        drawn = Round(2, 2, drawn=frozenset((row.id, row.content_hash) for row in rows), gone=1, population=108)
        (out / "round.json").write_text(json.dumps(drawn.to_json()))
        store.commit("review_sample", "newer", out, {"summary": {"of": 108}, "inputs": {}, "verdict": None})
    text = client.get(PAGE).text
    assert "0 of 12 reviewed, round 2" in text
    record_verdict(client, "reject")
    text = client.get(PAGE).text
    assert "at least, of rows not reviewed before" in text and "1 drawn row left the data, and counts as wrong" in text
    for _ in range(11):
        text = record_verdict(client, "approve")
    assert "begins round 3, with rows that nobody has reviewed; a sample that shows 95 %" in text
    assert sorted(path.name for path in rounds.iterdir()) == ["1.json", "2.json"]


def test_rows_that_may_conflict_are_reviewed_beside_the_sample(client: TestClient) -> None:
    task, store = make("parcels")
    drawn = store.current("review_sample")
    assert drawn is not None
    sampled, other = example(3), example(900)  # the first is in the sample, the second is not
    pair = {"similarity": 0.95, "rows": [sampled.to_json(), other.to_json()]}
    (drawn.folder / "flagged.jsonl").write_text(json.dumps(pair) + "\n", "utf-8")
    sign_in(client)
    text = client.get(PAGE).text
    assert "Answers that may conflict" in text and f"{PAGE}?row={other.id}" in text
    assert "0 of 12 reviewed" in text, "the sample is as large as before"
    page = client.get(f"{PAGE}?row={other.id}").text
    assert "Flagged row" in page and "Nearly the same prompt has another answer" in page and sampled.origin in page
    text = record_verdict(client, "reject", page=f"{PAGE}?row={other.id}")
    assert "0 of 12 reviewed" in text and "(rejected)" in text
    assert [review.id for review in verdict_store.load_for(store, task, [other])] == [other.id]
    for _ in range(12):
        text = record_verdict(client, "approve")
    assert "The review is complete" in text and "12 of 12 rows have all their verdicts" in text
    assert "Answers that may conflict" in text


def pairs(rejected: str) -> list[Example]:
    return [replace(example(n), rejected=rejected) for n in range(30)]


BETTER = json.dumps({"intent": "question", "priority": "low", "product": None, "order": None})


def test_a_rejected_answer_is_shown_beside_the_chosen_one_and_escaped(client: TestClient) -> None:
    make("parcels", rows=pairs("<script>alert(1)</script> so what?"))
    sign_in(client)
    text = client.get(PAGE).text
    assert "Chosen answer" in text and "Rejected answer" in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; so what?" in text and "<script>alert(1)" not in text
    edit = client.get(f"{PAGE}?row={example(0).id}&edit=1").text
    assert "so what?" in edit and "Correct the answer" in edit


def test_rows_without_a_preference_speak_of_none(client: TestClient) -> None:
    make("parcels")
    sign_in(client)
    assert "ejected answer" not in client.get(PAGE).text
    row, data = example(0), {"decision": "swap", "csrf": token(client, PAGE)}
    assert client.post(PAGE, data={**data, "row": row.id, "content_hash": row.content_hash}).status_code == 400


def test_the_rejected_answer_may_be_the_better_one(client: TestClient) -> None:
    _, store = make("parcels", rows=pairs(BETTER))
    sign_in(client)
    assert "Corrected row 1." in record_verdict(client, "swap")
    (review,) = saved(store)
    assert (review.decision, review.completion) == ("edit", BETTER)
    row = pairs(BETTER)[0]
    edited, _ = Edits(open_task("parcels")[0]).applied(row, review.completion or "")
    assert (edited.completion, edited.rejected) == (BETTER, row.completion)


def test_a_rejected_answer_that_is_not_in_the_format_cannot_be_preferred(client: TestClient) -> None:
    _, store = make("parcels", rows=pairs("so what?"))
    sign_in(client)
    assert "The rejected answer cannot be learned (Invalid answer: invalid JSON" in record_verdict(client, "swap")
    assert saved(store) == []


def test_all_turns_of_a_conversation_are_shown_in_their_order(client: TestClient) -> None:
    said = [("user", "first question"), ("assistant", "first reply"), ("user", "second question"), ("assistant", "2nd")]
    turns = (*(Message(role, text) for role, text in said), *example(0).messages)  # type: ignore[arg-type]
    make("parcels", rows=[replace(example(n), messages=turns) for n in range(30)])
    sign_in(client)
    text = client.get(PAGE).text
    found = [text.index(part) for part in ("first question", "first reply", "second question", "2nd", "wheres my")]
    assert found == sorted(found)
