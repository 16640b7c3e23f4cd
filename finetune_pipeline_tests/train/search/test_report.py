"""The page of a search shows every trial, the best one first, and how many were compared."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import permutations
from typing import Any

from finetune_pipeline.train.search.choice import best_of
from finetune_pipeline.train.search.report import Heading, headline, page, ranked
from finetune_pipeline.train.search.spec import SearchResult, State, TrialRecord

HEADING = Heading("parcels", "tiny", "2026-01-05T10:00:00+00:00")


def trial(number: int, state: State, loss: float | None, **changed: Any) -> TrialRecord:
    values = {"learning_rate": 0.001 * number, "layers": None, "without_sources": ["<b>web</b>"] if number > 2 else []}
    checks = (2.0, loss) if loss is not None else ()
    return replace(TrialRecord(number, state, values, loss, checks=checks, steps=9, rows=1234), **changed)


TRIALS = (
    trial(1, "complete", 0.5),
    trial(2, "pruned", 0.2),
    trial(3, "complete", 0.3),
    trial(4, "failed", None, reason="the loss diverges"),
)
RESULT = SearchResult(True, trials=TRIALS, best=3, logarithmic=("learning_rate",), validation_rows=60)


def test_the_best_trial_is_the_completed_one_with_the_best_metric() -> None:
    best = best_of(TRIALS, "loss")
    assert best is not None and best.number == 3, "a pruned trial is not chosen, whatever its loss was"
    scored = [replace(each, score=score) for each, score in zip(TRIALS, (0.5, 0.9, 0.5, None), strict=True)]
    by_score = best_of(scored, "score")
    assert by_score is not None and by_score.number == 3, "of equal scores, that with the lower loss"
    assert best_of([trial(1, "failed", None)], "loss") is None


def test_a_trial_without_a_finite_loss_is_not_the_best_wherever_it_stands() -> None:
    trials = [trial(1, "complete", 0.5), trial(2, "complete", math.nan), trial(3, "complete", 0.3)]
    for order in permutations(trials):
        best = best_of(order, "loss")
        assert best is not None and best.number == 3
        scored = [replace(each, score=0.9 if each.number == 2 else 0.5) for each in order]
        best = best_of(scored, "score")
        assert best is not None and best.number == 3
        result = replace(RESULT, trials=order)
        assert [each.number for each in ranked(result)] == [3, 1, 2]
    assert best_of([trials[1], trial(2, "complete", math.inf)], "loss") is None


def test_the_page_has_every_trial_and_says_what_it_is_worth() -> None:
    html = page(HEADING, RESULT)
    assert [each.number for each in ranked(RESULT)] == [3, 1, 2, 4]
    assert "compared on the 60 validation rows alone; no test row was read. The best of\n4 is chosen" in html
    assert len(re.findall(r'<tr><td class="n">|<tr class="best"><td class="n">3<', html)) == 4
    assert "the loss diverges" in html and "Too few completed trials" in html
    assert html.count("<circle") == 3 * 3 and html.count("<polyline") == 3
    assert "&lt;b&gt;web&lt;/b&gt;" in html and "<b>web" not in html and "<script" not in html and "http" not in html
    assert "learning_rate 0.003, layers all" in headline(RESULT)


def test_a_result_without_spread_or_with_one_trial_is_drawn() -> None:
    same = replace(RESULT, trials=(trial(1, "complete", 0.3), trial(2, "complete", 0.3)), best=1)
    assert page(HEADING, same).count("<circle") == 6
    one = replace(RESULT, trials=(trial(1, "complete", 0.3, checks=(0.3,)),), best=1)
    assert "<circle" not in page(HEADING, one)
    assert "declares no search" in page(HEADING, SearchResult(False))


def test_importance_is_shown_as_shares() -> None:
    html = page(HEADING, replace(RESULT, importance={"learning_rate": 0.75, "layers": 0.25}))
    assert 'width="75.0"' in html and "75 %" in html
