"""Draw the rows that the experts review, in rounds. Pure.

    sample = draw(rows, History(), None, {}, ReviewRules(), content_hash="3fa9…")
    sample.round.number, len(sample.rows), sample.round.population                  # 1, 70, 700

A round is one random draw. The next round draws only rows that nobody has reviewed as they are now. A round ends when

    failed      the gate failed, and since then the data (or the review's rules) changed
    hopeless    so many drawn rows are gone that the threshold cannot be reached
    outgrown    the data grew so much that the round's share of it exceeds twice `review.max_rows`

Keeping the approved rows and drawing others only for the wrong ones would make the sample better than the data: the
rows that nobody reviewed are as bad as before. For the same reason the draw of a round is fixed by its first verdict
(`salt`, `cutoff`): added rows are drawn at the same rate, other settings do not draw again, and a drawn row that was
rejected and then fixed at its source still counts as wrong, as does one that was removed before anybody reviewed it.
Only a row that was approved can be removed or changed without an effect on the count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from finetune_pipeline.config import ReviewRules
from finetune_pipeline.records import Example, Review, content_id
from finetune_pipeline.review.bounds import rows_needed
from finetune_pipeline.review.rounds import History, ReviewsByRow, Round, RowVersion, rules_hash

GROWTH = 2  # a round may grow with the data to this many times max_rows


@dataclass(frozen=True, slots=True)
class Sample:
    """The rows of the sample in the order of the draw, and their round."""

    rows: tuple[Example, ...]
    round: Round


def draw(
    rows: Sequence[Example],
    history: History,
    previous: Round | None,
    reviews: ReviewsByRow,
    rules: ReviewRules,
    content_hash: str,
) -> Sample:
    """The sample of these rows (at least one), whose data has this content hash.

    `previous`: the round of the sample drawn last, which may have no verdict yet; `reviews`: all verdicts.
    """
    last = _last_round(history, previous)
    if last is None:
        first = Round(1, 1, rules.seed, str(rules.seed))
        return _new_sample(rows, history, first, previous, reviews, rules, content_hash)
    continued = _continued(rows, history, last, reviews, rules, content_hash)
    if continued is not None:
        return continued
    salt = f"{rules.seed}:{last.number + 1}:{content_hash}"
    following = Round(last.number + 1, _next_analysis(history, last, rules), rules.seed, salt)
    return _new_sample(rows, history, following, previous, reviews, rules, content_hash)


def _last_round(history: History, previous: Round | None) -> Round | None:
    """The latest round with a verdict, including the rows that were drawn after it was stored."""
    last = history.rounds[-1] if history.rounds else None
    if last and previous and previous.number == last.number:
        return replace(last, drawn=last.drawn | previous.drawn)
    return last


def _new_sample(
    rows: Sequence[Example],
    history: History,
    new: Round,
    previous: Round | None,
    reviews: ReviewsByRow,
    rules: ReviewRules,
    content_hash: str,
) -> Sample:
    """The sample of a round without verdicts. The draw is the previous one, unless rows of that sample were removed
    since: somebody may have read them."""
    if previous is not None and (previous.number, previous.seed) == (new.number, rules.seed):
        present = {row.id for row in rows}
        removed = any(id_ not in present and (id_, content) not in reviews for id_, content in previous.drawn)
        new = replace(new, salt=f"{rules.seed}:{new.number}:{content_hash}" if removed else previous.salt)
    unreviewed = _unreviewed(rows, history, new, reviews)
    ordered = _ordered(unreviewed or rows, new.salt)
    # where every row has a verdict, all rows are the sample
    sample = ordered[: _sample_size(len(ordered), rules, new.analysis)] if unreviewed else ordered
    return _sample(sample, replace(new, cutoff=_sort_key(sample[-1], new.salt)), len(ordered))


def _continued(
    rows: Sequence[Example],
    history: History,
    last: Round,
    reviews: ReviewsByRow,
    rules: ReviewRules,
    content_hash: str,
) -> Sample | None:
    """The sample of the last round, or None when that round has ended."""
    results = history.results_in(last.number)
    current = (content_hash, rules_hash(rules))
    if results and not results[-1].passed and (results[-1].about, results[-1].rules_hash) != current:
        return None
    ordered = _ordered(_unreviewed(rows, history, last, reviews) or rows, last.salt)
    sample = [row for row in ordered if _sort_key(row, last.salt) <= last.cutoff]
    gone = _count_gone(rows, last, reviews)
    if not sample or len(sample) / (len(sample) + gone) < rules.min_approved or len(sample) > GROWTH * rules.max_rows:
        return None
    return _sample(sample, replace(last, gone=gone), len(ordered))


def _sample(rows: Sequence[Example], of: Round, population: int) -> Sample:
    drawn = of.drawn | {(row.id, row.content_hash) for row in rows}
    return Sample(tuple(rows), replace(of, drawn=drawn, population=population))


def _next_analysis(history: History, last: Round, rules: ReviewRules) -> int:
    """The number of the next interim analysis. Data that passed (by the current rules) starts a new count: its error is
    spent from the start. If the gate failed after that, this was the first analysis of the new count."""
    results = history.results_in(last.number)
    passed = [result.passed and result.rules_hash == rules_hash(rules) for result in results]
    if passed and passed[-1]:
        return 1
    return 2 if any(passed) else last.analysis + 1


def _unreviewed(rows: Sequence[Example], history: History, of: Round, reviews: ReviewsByRow) -> list[Example]:
    """The rows that nobody reviewed, as they are now, before the round `of`: the estimate is about these. The others
    have verdicts that are applied. (Where every row has one, nothing is left to estimate, and all rows are in the
    sample.)

    Recorded verdicts exist also for rows that were not drawn yet, so they count only where the row was drawn.
    """
    earlier = {version for stored in history.rounds if stored.number < of.number for version in stored.drawn}

    def reviewed(version: RowVersion) -> bool:
        given = reviews.get(version, ()) if version not in of.drawn else ()
        return bool(given) and (version in earlier or any(not review.recorded for review in given))

    return [row for row in rows if not reviewed((row.id, row.content_hash))]


def _count_gone(rows: Sequence[Example], last: Round, reviews: ReviewsByRow) -> int:
    """How many rows drawn in this round were removed or changed after they were rejected, or removed before anybody
    reviewed them. A row that changed before its review is still in the sample, as it is now."""
    present = {row.id: row.content_hash for row in rows}
    missing = [version for version in last.drawn if present.get(version[0]) != version[1]]
    return sum(
        not _approved(reviews[version]) if version in reviews else version[0] not in present for version in missing
    )


def _approved(reviews: Sequence[Review]) -> bool:
    """Whether the majority approved a row whose content is no longer known (else verdict_store.is_right)."""
    return 2 * sum(review.decision == "approve" for review in reviews) > len(reviews)


def _sample_size(population: int, rules: ReviewRules, analysis: int) -> int:
    """The rows that a round draws. Where the bound decides, and after the gate failed, at least as many as can reach
    the bound: 20 rows of which 80 % are right look like 95 % once in 15 times, so that repeating small samples would
    pass bad data."""
    bounded = rules.require_lower_bound or analysis > 1
    needed = rows_needed(1.0, rules, analysis).none_wrong if bounded else None
    wanted = max(rules.min_rows, math.ceil(rules.fraction * population), needed or 0)
    return min(wanted, rules.max_rows, population)


def _ordered(rows: Sequence[Example], salt: str) -> list[Example]:
    return sorted(rows, key=lambda row: (_sort_key(row, salt), row.id))


def _sort_key(row: Example, salt: str) -> str:
    """A hash, so that all rows are equally likely to come first."""
    return content_id(salt, row.id)
