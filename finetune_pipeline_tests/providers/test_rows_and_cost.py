"""The provider's file format and rules, and the arithmetic of the cost."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from finetune_pipeline.config import Hyperparameters, Provider
from finetune_pipeline.errors import DataError
from finetune_pipeline.providers import cost
from finetune_pipeline.providers.events import EventLog, JobEvent, history, validation_change
from finetune_pipeline.providers.rows import (
    Counted,
    counted,
    lines_of,
    preference_line,
    prepare,
    require_accepted,
    supervised_line,
)
from finetune_pipeline.records import Example, Message
from finetune_pipeline_tests.artifacts import example

PROVIDER = Provider(model="gpt-4.1-mini", price_per_million_training_tokens=5.0)


def words(texts: object) -> list[int]:
    return [len(text.split()) for text in texts]  # type: ignore[attr-defined]


def test_a_conversation_keeps_its_own_system_message() -> None:
    own = Example("a", (Message("system", "Be brief."), Message("user", "hi"), Message("assistant", "hi")), "s", "o")
    assert supervised_line(own, "Say the color.").body["messages"][0]["content"] == "Be brief."
    assert [m["role"] for m in supervised_line(example("b", "q", "red"), "").body["messages"]] == ["user", "assistant"]


def test_a_preference_pair_has_the_format_of_dpo() -> None:
    body = preference_line(example("a", "color?", "red"), "I think red", "Say the color.").body
    assert [m["role"] for m in body["input"]["messages"]] == ["system", "user"]
    assert body["preferred_output"] == [{"role": "assistant", "content": "red"}]
    assert body["non_preferred_output"] == [{"role": "assistant", "content": "I think red"}]


def test_every_violated_rule_is_named_with_its_rows(tmp_path: Path) -> None:
    rules = PROVIDER.model_copy(update={"max_example_tokens": 30})
    lines = [
        supervised_line(example("a", "short", "red"), ""),
        supervised_line(example("b", "long " * 40, "red"), ""),
        supervised_line(example("c", "empty", " "), ""),
    ]
    prepared = prepare(tmp_path / "train.jsonl", lines, rules, words, 10)
    assert prepared.tokens == (2 + 11) + (41 + 11) + (1 + 11)
    assert json.loads(prepared.path.read_text("utf-8").splitlines()[0])["messages"][0]["content"] == "short"
    with pytest.raises(DataError) as caught:
        require_accepted(prepared)
    assert "enough examples: 3 (at least 10)" in caught.value.message
    assert "longer than 30 tokens (estimated): 1 rows: b" in caught.value.message
    assert "no answer is empty: 1 rows: c" in caught.value.message


@pytest.mark.parametrize("method", ["supervised", "dpo"])
def test_what_is_counted_is_what_the_file_holds(tmp_path: Path, method: str) -> None:
    provider = PROVIDER.model_copy(update={"method": method})
    pair = replace(example("a", "which color is it", "red"), rejected="I think that it is red")
    rows = [pair, example("b", "and this one", "blue")]
    found = counted(rows, "Say the color.", provider, words)
    tokens = {"supervised": (3 + 4 + 1) + (3 + 3 + 1) + 2 * (3 * 4 + 3), "dpo": (3 + 4 + 1 + 6) + (4 * 4 + 3)}
    assert found == Counted({"supervised": 2, "dpo": 1}[method], tokens[method])
    prepared = prepare(tmp_path / "train.jsonl", lines_of(rows, "Say the color.", provider), provider, words)
    assert (len(prepared.ids), prepared.tokens) == (found.rows, found.tokens)
    assert counted([], "", provider, words) == Counted(0, 0)


def test_each_job_has_its_own_events(tmp_path: Path) -> None:
    event = JobEvent("e1", 1, "info", "started")
    (tmp_path / "events-ftjob-1.jsonl").write_text(json.dumps(asdict(event)) + "\n", "utf-8")
    assert [each.id for each in EventLog.of_job(tmp_path, "ftjob-1").events] == ["e1"]
    assert not EventLog.of_job(tmp_path, "ftjob-2").events
    assert not EventLog.of_job(tmp_path, "projects/7:jobs/../1").events, "an id with any character"


def test_the_estimate_counts_epochs_and_says_whether_they_are_assumed() -> None:
    assumed = cost.estimate(200_000, 500, PROVIDER)
    assert (assumed.tokens, assumed.epochs, assumed.epochs_declared, assumed.cost) == (600_000, 3, False, 3.0)
    declared = PROVIDER.model_copy(update={"hyperparameters": Hyperparameters(n_epochs=2)})
    assert cost.estimate(200_000, 500, declared).cost == 2.0
    assert [cost.default_epochs(rows) for rows in (10, 33, 34, 8_000, 9_000, 30_000)] == [10, 3, 3, 3, 2, 1]
    assert "no price is declared" in str(cost.estimate(1000, 10, Provider(model="m")))


def test_a_training_beyond_the_limit_is_refused_and_one_at_the_limit_is_not() -> None:
    limited = PROVIDER.model_copy(update={"max_cost": 3.0})
    cost.require_within(cost.estimate(200_000, 500, limited), limited)
    with pytest.raises(DataError, match=r"estimated at 606,000 tokens, 3\.03 USD"):
        cost.require_within(cost.estimate(202_000, 500, limited), limited)


def test_the_price_of_an_answer_needs_both_prices() -> None:
    priced = Provider(model="m", price_per_million_prompt_tokens=2.0, price_per_million_completion_tokens=8.0)
    assert cost.answer_cost(500, 10, priced) == pytest.approx(0.00108)
    assert cost.answer_cost(500, 10, Provider(model="m", price_per_million_prompt_tokens=2.0)) is None


def test_the_validation_loss_is_compared_like_with_like() -> None:
    events = [
        JobEvent(str(n), n, "info", "", {"step": n, "train_loss": 1.0, "valid_loss": 3.0 - n / 10}) for n in range(10)
    ]
    lines = history(events, [])
    start, end, compared = validation_change(lines) or (0.0, 0.0, "")
    assert [start, end] == pytest.approx([2.95, 2.15])
    assert compared == "means of the first and last 2 batches"
    whole = history(events, [(4, {"full_valid_loss": 1.5}), (9, {"full_valid_loss": 1.7})])
    assert (validation_change(whole) or ())[:2] == (1.5, 1.7)
    assert validation_change(history(events[:1], [])) is None
