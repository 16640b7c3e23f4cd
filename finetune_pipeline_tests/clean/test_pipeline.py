"""All rules on all rows: each drop and fix is in the ledger, in order, and every row is accounted for."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from finetune_pipeline.clean.assets import clean_examples, ledger
from finetune_pipeline.clean.duplicates import same_prompt
from finetune_pipeline.clean.lengths import Quantiles
from finetune_pipeline.clean.pipeline import Cleaned, clean
from finetune_pipeline.config import AnswerFormat, Clean
from finetune_pipeline.errors import DataError
from finetune_pipeline.records import Example, Message, read_jsonl
from finetune_pipeline_tests.artifacts import example, finished, stage_context, task, task_store

LABELS = AnswerFormat(format="label", labels=("delivery", "refund"))
ORDER = AnswerFormat(
    format="json",
    json_schema={
        "required": ["intent"],
        "properties": {"intent": {"enum": ["delivery", "refund"]}, "order": {"type": ["string", "null"]}},
    },
)


def words(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def cleaned(rows: list[tuple[str, str]], answer: AnswerFormat = LABELS, system: str = "", **rules: Any) -> Cleaned:
    examples = [example(str(n), prompt, completion) for n, (prompt, completion) in enumerate(rows)]
    return clean(examples, Clean(**rules), answer, system, words)


def dropped(result: Cleaned) -> dict[str, str]:
    return {drop.id: drop.reason for drop in result.drops}


def fixes(result: Cleaned) -> list[tuple[str, str]]:
    return [(fix.id, fix.rule) for fix in result.fixes]


def test_a_row_is_fixed_and_the_ledger_has_each_fix() -> None:
    result = cleaned([("<p>where  is my cafÃ© order?</p> mail jo@example.com or al@example.com", " Delivery")])
    assert [(row.prompt, row.completion) for row in result.kept] == [
        ("where is my café order?\nmail <EMAIL> or <EMAIL>", "delivery")
    ]
    assert fixes(result) == [
        ("0", "encoding"),
        ("0", "html"),
        ("0", "space"),
        ("0", "completion-label"),
        ("0", "pii-email"),
    ]
    assert result.fixes[-1].detail == "2 times"


def test_invalid_completions_are_dropped_each_with_its_reason() -> None:
    rows = [("one", "  "), ("two", '{"intent": "deli'), ("three", '{"intent": "x"}'), ("four", '{"intent": "refund"}')]
    assert dropped(cleaned(rows, ORDER)) == {
        "0": "empty-completion",
        "1": "truncated-completion",
        "2": "invalid-completion",
    }
    assert dropped(cleaned([("<br/> \u200b", "refund")])) == {"0": "empty-prompt"}


def test_many_spellings_of_one_prompt_are_near_duplicates_of_the_first_with_that_completion() -> None:
    """More of them than `Similarity.pairs` forms all pairs of."""
    prompts = [f"{'Where' if n % 2 else 'where'} is my order{'?' * (n // 2 + 1)}" for n in range(14)]
    completions = ["refund", *["delivery"] * 12, "refund"]
    result = cleaned(list(zip(prompts, completions, strict=True)))
    assert [row.id for row in result.kept] == ["0", "1"]
    assert set(dropped(result).values()) == {"near-duplicate"}
    assert len(result.pairs) == 12 and {pair.kept for pair in result.pairs} == {"0", "1"}


def test_a_duplicate_names_the_row_that_is_kept_though_it_equals_another() -> None:
    prompt = "where is my order{} please, it was due on Monday and nobody answers"
    rows = [
        (prompt.format(""), "delivery"),
        (prompt.format("s"), "delivery"),
        (prompt.format("s!").upper(), "delivery"),
    ]
    result = cleaned(rows)
    assert [row.id for row in result.kept] == ["0"]
    assert {(pair.kept, pair.dropped) for pair in result.pairs} == {("0", "1"), ("0", "2")}
    assert result.pairs[0].similarity < 1


def test_lengths_include_the_system_prompt_and_rows_outside_the_bounds_are_dropped() -> None:
    rows = [("word " * 20, "refund"), ("two words", "refund"), ("one", "refund")]
    result = cleaned(rows, system="be kind", min_tokens=1, max_tokens=24)
    assert dropped(result) == {"0": "too-long"}
    assert dropped(cleaned(rows, min_tokens=2)) == {"0": "too-short", "1": "too-short", "2": "too-short"}
    assert result.lengths.whole == Quantiles(p50=19, p95=19, max=20)  # 3 messages of 5, 2 + 1 or 2 + 1 words


def test_the_first_of_exact_duplicates_is_kept() -> None:
    rows = [("Where is my order?", "delivery"), (" Where is  my order?", "delivery"), ("where is MY order", "delivery")]
    result = cleaned(rows)
    assert [row.id for row in result.kept] == ["0"]
    assert dropped(result) == {"1": "exact-duplicate", "2": "near-duplicate"}
    assert [(pair.kept, pair.dropped) for pair in result.pairs] == [("0", "1"), ("0", "2")]


NEAR = "I have been waiting for the blue kettle since last Monday and nobody has told me anything at all"


SAME_BUT_FOR_MARKS = (
    ("what does cd .. do", "what does cd . do"),
    ("what does cd ..", "what does cd ."),
    ("is it 5 mW", "is it 5 MW"),
    ("what does grep -v print", "what does grep -V print"),
    ("translate Polish", "translate polish"),
    ("what is n!", "what is n"),
    ("match a?", "match a"),
    ("define π", "define Π"),
    ("if a:\n    b()\nc()", "if a:\n    b()\n    c()"),
    ("Where is my order?", "where is my order"),
)


PLAUSIBLE = (  # the difference may be a typing error or not, so that reviewers decide
    ("Is it worth to learn C for a new job this year?", "Is it worth to learn C# for a new job this year?"),
    ("It has 40 C in here, is that all right?", "It has -40 C in here, is that all right?"),
    ("What does the expression *p mean in this line?", "What does the expression &p mean in this line?"),
    (f"{NEAR} that arrived on Tuesday", f"{NEAR} that arrived on Thursday"),
    (f"{NEAR} of my hypoglycemia", f"{NEAR} of my hyperglycemia"),
)


def test_near_duplicates_need_the_same_completion_and_the_similarity() -> None:
    assert dropped(cleaned([(NEAR, "delivery"), (NEAR + " today", "delivery")])) == {"1": "near-duplicate"}
    assert dropped(cleaned([(NEAR, "delivery"), (NEAR + " today", "delivery")], near_duplicate_threshold=1.0)) == {}
    assert (
        dropped(
            cleaned(
                [(NEAR, "delivery"), (NEAR.replace("Monday", "Friday and Sunday"), "delivery")],
                near_duplicate_threshold=0.95,
            )
        )
        == {}
    )


def test_the_far_end_of_a_chain_of_near_duplicates_is_kept() -> None:
    rows = [
        (NEAR, "delivery"),
        (NEAR + " about this one", "delivery"),
        (NEAR + " about this one or any other thing", "delivery"),
    ]
    assert dropped(cleaned(rows)) == {"1": "near-duplicate"}


def test_contradictions_are_all_dropped_or_kept_as_declared() -> None:
    rows = [(NEAR, "delivery"), (NEAR, "refund"), (NEAR, "delivery"), ("else", "refund")]
    assert dropped(cleaned(rows)) == {"0": "contradiction", "1": "contradiction", "2": "exact-duplicate"}
    assert dropped(cleaned(rows, contradictions="keep")) == {"2": "exact-duplicate"}


@pytest.mark.parametrize(
    ("left", "right"),
    [
        *PLAUSIBLE,
        ("what is 5! in numbers", "what is 5 in numbers"),
        ("what is x < y called in this book", "what is x > y called in this book"),
        (NEAR, NEAR.replace("kettle", "kettel")),
        (NEAR, NEAR.replace("waiting", "not waiting")),
    ],
)
def test_a_near_prompt_with_another_completion_is_kept(left: str, right: str) -> None:
    assert dropped(cleaned([(left, "delivery"), (right, "refund")])) == {}


def test_identical_prompts_are_equal_in_every_character() -> None:
    rows = [("Caf\u00e9 near  me?", "delivery"), ("Cafe\u0301 near me? ", "refund")]
    assert set(dropped(cleaned(rows)).values()) == {"contradiction"}
    two = [("is C typed?", "delivery"), ("is C# typed?", "delivery")]
    assert dropped(cleaned(two)) == {"1": "near-duplicate"}
    assert dropped(cleaned(two, near_duplicate_threshold=1.0)) == {}


@pytest.mark.parametrize("threshold", [0.8, 1.0])
@pytest.mark.parametrize(("left", "right"), SAME_BUT_FOR_MARKS)
def test_prompts_that_differ_in_case_marks_or_line_breaks_are_conflicts(
    left: str, right: str, threshold: float
) -> None:
    result = cleaned([(left, "delivery"), (right, "refund")], near_duplicate_threshold=threshold)
    assert (dropped(result), [conflict.rows for conflict in result.conflicts]) == ({}, [("0", "1")])


@pytest.mark.parametrize(("left", "right"), PLAUSIBLE)
def test_plausible_near_prompts_with_another_completion_are_conflicts(left: str, right: str) -> None:
    assert [conflict.rows for conflict in cleaned([(left, "delivery"), (right, "refund")]).conflicts] == [("0", "1")]


def test_near_prompts_with_an_unexplained_difference_are_conflicts() -> None:
    near = [(NEAR, "delivery"), (NEAR.replace("kettle", "kettel"), "refund"), ("else", "refund")]
    result = cleaned(near)
    assert [conflict.rows for conflict in result.conflicts] == [("0", "1")]
    assert result.summary()["conflicts"] == 1
    orders = [(f"{NEAR}, order HV-{n}", json.dumps({"intent": "delivery", "order": f"HV-{n}"})) for n in (48213, 48214)]
    assert (dropped(cleaned(orders, ORDER)), cleaned(orders, ORDER).conflicts) == ({}, [])
    assert cleaned(near, contradictions="keep").conflicts == []


def test_free_text_may_have_several_completions_for_one_prompt() -> None:
    rows = [
        ("name[Aromi], area[center]", f"Aromi is a place in the {word}.") for word in ("centre", "center", "middle")
    ]
    result = cleaned([*rows, rows[0]], AnswerFormat())
    assert dropped(result) == {"3": "exact-duplicate"}
    assert result.summary()["several_completions"] == {"prompts": 1, "rows": 3}
    for left, right in (("C", "C#"), ("polish", "Polish"), ("if a:\n    b()\nc()", "if a:\n    b()\n    c()")):
        assert dropped(cleaned([("one", left), ("one", right)], AnswerFormat())) == {}
    checks = ledger(4, result, "hash").checks
    assert [(check.severity, check.passed) for check in checks] == [("error", True), ("warning", False)]
    assert "1 prompts have several completions, in 3 rows" in checks[1].observed


def test_an_instruction_in_every_row_makes_no_duplicates() -> None:
    instruction = (
        "Sort the message of the customer into one of the intents, and answer with the name of the intent only. Think "
        "about what the person wants to reach, not about single words. Write it in lower case, without quotes and "
        "without a full stop at the end; if none of them seems to fit, choose the one that is nearest. Here it is: "
    )
    rows = [
        (f"{instruction}{word * 4} and {word}", "refund") for word in ("abc", "def", "ghi", "jkl", "mno", "pqr", "stu")
    ]
    rows += [
        (f"{instruction}{word * 5} or {word}", "refund") for word in ("vwx", "yza", "bcd", "efg", "hij", "klm", "nop")
    ]
    rows += [
        (f"{instruction}{word * 6} not {word}", "refund") for word in ("qrs", "tuv", "wxy", "zab", "cde", "fgh", "ijk")
    ]
    assert dropped(cleaned(rows, max_tokens=500)) == {}


def test_one_text_under_two_instructions_is_two_prompts() -> None:
    random_ = random.Random(1)
    texts = [" ".join("".join(random_.choices("abcdefghijklmno", k=6)) for _ in range(9)) for _ in range(100)]
    angry = (
        "Read the following message of a customer and tell whether the customer is angry or complains about something."
    )
    parcel = "Read the following message of a customer and tell whether it is about a parcel, a shipment or a driver."
    rows = [(f"{instruction}\n\n{text}", "delivery") for text in texts for instruction in (angry, parcel)]
    repeated = [(f"{parcel}\n\n{texts[0]} please", "delivery")]
    assert dropped(cleaned(rows + repeated)) == {"200": "near-duplicate"}


def test_ten_thousand_equal_rows_and_as_many_contradictions() -> None:
    assert len(cleaned([("where is it?", "refund")] * 10_000).kept) == 1
    result = cleaned(
        [("where is it?", json.dumps({"intent": "refund", "order": str(n)})) for n in range(10_000)], ORDER
    )
    assert len(result.drops) == 10_000
    assert result.drops[0].detail == "the same prompt has another completion in 1, 2, 3 and 9996 more"


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("cancel my order please", "cancel the order", True),
        ("i want a refund", "i want a refundd", True),
        ("lock my account", "unlock my account", False),
        ("transfer from euro to dollar", "transfer from dollar to euro", False),
        ("i did get it", "i did not get it", False),
        ("order 12", "order 13", False),
    ],
)
def test_same_prompt(left: str, right: str, same: bool) -> None:
    assert same_prompt(left, right) is same
    assert same_prompt(right, left) is same


def test_personal_data_is_masked_dropped_or_kept_as_declared() -> None:
    rows = [("mail jo@example.com about order 12", "refund"), ("mail al@example.com about order 12", "refund")]
    masked = cleaned(rows)
    assert dropped(masked) == {"1": "exact-duplicate"}  # they differed in the address only
    result = cleaned(rows, personal_data="drop")
    assert dropped(result) == {"0": "personal-data", "1": "personal-data"}
    assert all("example.com" not in drop.detail for drop in result.drops)
    assert cleaned(rows, personal_data="keep").kept[0].prompt == rows[0][0]


def test_masked_json_completions_are_valid_json_or_dropped() -> None:
    def completion(order: object) -> str:
        return json.dumps({"intent": "refund", "order": order})

    result = cleaned([("a b", completion("line\njo@example.com"))], ORDER)
    assert json.loads(result.kept[0].completion)["order"] == "line\n<EMAIL>"
    spec = ORDER.model_copy(update={"json_schema": {"properties": {"phone": {"type": "integer"}}}})
    assert dropped(cleaned([("a b", '{"phone": 5550104477}')], spec)) == {"0": "personal-data"}


def test_all_messages_of_a_conversation_are_cleaned() -> None:
    turns = (
        Message("system", "be  kind"),
        Message("user", "<b>hi</b>"),
        Message("assistant", "Hello,  jo@example.com"),
        Message("user", "where?"),
        Message("assistant", "delivery"),
    )
    result = clean([Example("0", turns, "s", "s:1")], Clean(), LABELS, "unused", words)
    assert [m.content for m in result.kept[0].messages] == ["be kind", "hi", "Hello,  <EMAIL>", "where?", "delivery"]


def test_cleaning_twice_changes_nothing_more() -> None:
    rows = [("<p>where  is my cafÃ© order?</p> ring 07700 900123", "Delivery"), ("a &lt; b", "refund")]
    once = cleaned(rows)
    twice = clean(once.kept, Clean(), LABELS, "", words)
    assert (twice.kept, twice.fixes, twice.drops) == (once.kept, [], [])


def test_the_asset_writes_the_ledger_and_its_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    from finetune_pipeline.models.model_source import prepare
    from finetune_pipeline.records import Silent

    store = task_store(tmp_path, monkeypatch)
    declared = task(
        base={"path": str(tiny_model), "license": "apache-2.0"},
        answer={"format": "label", "labels": ["delivery", "refund"]},
    )
    rows = [
        example("a", "<p>where is my order?</p>", "delivery"),
        example("b", "money back", "refund"),
        example("c", "x", ""),
    ]
    raw = finished(store, "raw_examples", {"examples.jsonl": rows})
    base = finished(store, "base_model", {"base_model.json": prepare(declared.base, store.task, Silent())[1]})
    context = stage_context(declared, store, tmp_path, raw_examples=raw, base_model=base)
    result = clean_examples(context)
    assert [row["id"] for row in read_jsonl(context.out / "examples.jsonl")] == ["a", "b"]
    assert [row["reason"] for row in read_jsonl(context.out / "drops.jsonl")] == ["empty-completion"]
    assert [row["rule"] for row in read_jsonl(context.out / "fixes.jsonl")] == ["html"]
    assert result.verdict is not None and result.verdict.passed
    assert result.verdict.about == raw.content_hash
    assert result.summary["rows"] == 3 and result.summary["kept"] == 2
    tokens: Any = result.summary["tokens"]
    assert tokens["whole"]["max"] > 10
    facts = prepare(declared.base, store.task, Silent())[1]
    short = finished(store, "base_model", {"base_model.json": {**facts, "context": tokens["whole"]["max"] - 1}})
    context = stage_context(declared, store, tmp_path, raw_examples=raw, base_model=short)
    clean_examples(context)
    dropped = [row["reason"] for row in read_jsonl(context.out / "drops.jsonl")]
    assert "too-long" in dropped, "longer than what the base model reads"
    nothing = finished(store, "raw_examples", {"examples.jsonl": rows[2:]})
    with pytest.raises(DataError, match=r"no row is left .*empty-completion: 1"):
        clean_examples(stage_context(declared, store, tmp_path, raw_examples=nothing, base_model=base))
