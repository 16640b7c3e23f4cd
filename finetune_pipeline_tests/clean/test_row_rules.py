"""The table of row rules: a rule of one function and one line is applied, and is in the ledger by its slug."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_pipeline.clean.pipeline import clean
from finetune_pipeline.clean.row_rules import ROW_RULES, Dropped, RowContext, RowResult
from finetune_pipeline.clean.text_fixes import COMPLETION_FIXES, PROMPT_FIXES, apply_fixes
from finetune_pipeline.config import AnswerFormat, Clean
from finetune_pipeline.records import Example
from finetune_pipeline_tests.artifacts import example

LABELS = AnswerFormat(format="label", labels=("delivery", "refund"))


def drop_links(row: Example, context: RowContext) -> RowResult:
    return Dropped("the prompt is one link") if row.prompt.startswith("https://") else row


def lower_yes(row: Example, context: RowContext) -> RowResult:
    return row.with_completion(row.completion.lower())


def drop_refunds(row: Example, context: RowContext) -> RowResult:
    return Dropped("", "refund-of-a-label") if row.completion in context.answer.labels[1:] else row


def words(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def test_slugs_are_distinct() -> None:
    for table in (ROW_RULES, PROMPT_FIXES, COMPLETION_FIXES):
        assert len({slug for slug, _ in table}) == len(table)


def test_a_rule_drops_changes_or_keeps_a_row_and_the_ledger_has_its_slug() -> None:
    rules = (("lower-completion", lower_yes), ("link", drop_links), *ROW_RULES, ("last", drop_refunds))
    rows = [
        example("a", "where is it?", "DELIVERY"),
        example("b", "https://example.com", "Refund"),
        example("c", "<b>when</b> will it come?", "delivery"),
        example("d", "money  back", "refund"),
    ]
    result = clean(rows, Clean(), LABELS, "", words, row_rules=rules)
    assert [row.id for row in result.kept] == ["a", "c"]
    assert [(drop.id, drop.reason) for drop in result.drops] == [("b", "link"), ("d", "refund-of-a-label")]
    fixes = [(fix.id, fix.rule) for fix in result.fixes]
    assert fixes == [("a", "lower-completion"), ("b", "lower-completion"), ("c", "html"), ("d", "space")]


def test_a_text_fix_is_reported_only_where_it_changes_the_text() -> None:
    fixes = (*PROMPT_FIXES, ("smiley", lambda text: text.replace(":-)", "🙂")))
    assert apply_fixes("thanks  :-)", fixes) == ("thanks 🙂", ["space", "smiley"])
    assert apply_fixes("thanks", fixes) == ("thanks", [])
