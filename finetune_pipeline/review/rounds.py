"""Rounds of the review: which rows are drawn, and what makes a round end. Pure; files are history.py's.

A round is one random draw. It lasts while it can still say something about the data, and the next one draws from rows
that nobody has reviewed as they are now:

    refused     the gate refused, and since then the data (or the review's rules) changed
    hopeless    so many drawn rows are gone that the threshold is out of reach
    outgrown    the data grew so much that the round's share of it exceeds twice `review.max_rows`

Why not go on with the rows that were approved, and draw others only for those that were wrong? Because then the sample
gets better than the data: the rows that nobody saw are as bad as before. For the same reason, as soon as a verdict was
given, the round's draw is fixed (`salt`, `cut`): rows that are added are drawn at the same rate, no other declaration
draws anew, and a drawn row that was found wrong and is then repaired at its source stays in the count as wrong, as does
one that was taken out before anybody judged it. Only a row that was found right may leave without a trace.

    drawn = draw(rows, History(), None, {}, ReviewRules(), about="3fa9…")
    drawn.round.number, len(drawn.rows), drawn.round.population                     # 1, 70, 700
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from finetune_pipeline.config import ReviewRules
from finetune_pipeline.records import Example, Json, Review, content_id, dumps
from finetune_pipeline.review.bounds import fresh_rows

GROWTH = 2  # times max_rows that a round may reach by growth of the data
Shown = tuple[str, str]  # id and content of a row: what a verdict is about
Said = Mapping[Shown, Sequence[Review]]


@dataclass(frozen=True, slots=True)
class Round:
    """One draw. `look` counts the decisions about this data set, this one included (bounds.py); a row is in the sample
    when the hash of `salt` and its id is not above `cut`; `drawn` are all rows that were ever drawn in this round, as
    they were; `gone` counts those that are no longer in the data and count as wrong; `population` is the number of rows
    that the estimate is about (None: not known)."""

    number: int = 1
    look: int = 1
    seed: int = 0
    salt: str = ""
    cut: str = ""
    drawn: frozenset[Shown] = frozenset()
    gone: int = 0
    population: int | None = None

    def to_json(self) -> dict[str, Json]:
        return {**asdict(self), "drawn": [list(shown) for shown in sorted(self.drawn)]}

    @staticmethod
    def from_json(plain: Mapping[str, Any]) -> Round:
        return Round(**{**plain, "drawn": frozenset((id_, content) for id_, content in plain["drawn"])})


@dataclass(frozen=True, slots=True)
class Decision:
    """What the gate said at the end of a round, about which data (content hash), by which rules (their hash)."""

    passed: bool
    right: int
    rows: int
    about: str
    rules: str
    at: str


@dataclass(frozen=True)
class History:
    """The rounds in which verdicts were given, in order, and the gate's decisions in each, by number."""

    rounds: tuple[Round, ...] = ()
    decisions: Mapping[int, tuple[Decision, ...]] = field(default_factory=dict)

    def of(self, number: int) -> tuple[Decision, ...]:
        return self.decisions.get(number, ())

    def including(self, one: Round) -> History:
        """With this round, which is not among them where all its verdicts are recorded ones."""
        known = one.number in {each.number for each in self.rounds}
        return self if known else replace(self, rounds=(*self.rounds, one))


@dataclass(frozen=True, slots=True)
class Drawn:
    """The rows of the sample in the order of the draw, and the round they belong to."""

    rows: tuple[Example, ...]
    round: Round


def rules_hash(rules: ReviewRules) -> str:
    """Changes with every rule of the review that bears upon the gate."""
    return content_id(dumps(rules.model_dump(mode="json", exclude={"recorded", "max_flagged"})))


def draw(
    rows: Sequence[Example], history: History, before: Round | None, said: Said, rules: ReviewRules, about: str
) -> Drawn:
    """The sample for these rows (content hash `about`). `before` is the round of the sample drawn last, which may be
    one in which nobody has said anything yet; `said` are all verdicts, by what they are about. `rows` are not empty."""
    last = _opened(history, before)
    if last is None:
        return _opening(rows, history, Round(1, 1, rules.seed, str(rules.seed)), before, said, rules, about)
    going_on = _going_on(rows, history, last, said, rules, about)
    if going_on is not None:
        return going_on
    salt = f"{rules.seed}:{last.number + 1}:{about}"
    fresh = Round(last.number + 1, _next_look(history, last, rules), rules.seed, salt)
    return _opening(rows, history, fresh, before, said, rules, about)


def _opened(history: History, before: Round | None) -> Round | None:
    """The latest round in which somebody said something; it knows also the rows that were drawn since."""
    last = history.rounds[-1] if history.rounds else None
    if last and before and before.number == last.number:
        return replace(last, drawn=last.drawn | before.drawn)
    return last


def _opening(
    rows: Sequence[Example],
    history: History,
    fresh: Round,
    before: Round | None,
    said: Said,
    rules: ReviewRules,
    about: str,
) -> Drawn:
    """A round in which nobody has said anything yet. It is drawn as it was last time, unless rows of that sample were
    taken out since: somebody may have looked at them."""
    if before is not None and (before.number, before.seed) == (fresh.number, rules.seed):
        present = {row.id for row in rows}
        looked_at = any(id_ not in present and (id_, content) not in said for id_, content in before.drawn)
        fresh = replace(fresh, salt=f"{rules.seed}:{fresh.number}:{about}" if looked_at else before.salt)
    unseen = _unseen(rows, history, fresh, said)
    ordered = _ordered(unseen or rows, fresh.salt)
    sample = ordered[: _size(len(ordered), rules, fresh.look)] if unseen else ordered  # else each has its verdict
    return _drawn(sample, replace(fresh, cut=_place(sample[-1], fresh.salt)), len(ordered))


def _going_on(
    rows: Sequence[Example], history: History, last: Round, said: Said, rules: ReviewRules, about: str
) -> Drawn | None:
    """The sample of a round that is not over; None when it is."""
    decided = history.of(last.number)
    if decided and not decided[-1].passed and (decided[-1].about, decided[-1].rules) != (about, rules_hash(rules)):
        return None
    ordered = _ordered(_unseen(rows, history, last, said) or rows, last.salt)
    sample = [row for row in ordered if _place(row, last.salt) <= last.cut]
    gone = _gone(rows, last, said)
    if not sample or len(sample) / (len(sample) + gone) < rules.min_approved or len(sample) > GROWTH * rules.max_rows:
        return None
    return _drawn(sample, replace(last, gone=gone), len(ordered))


def _drawn(sample: Sequence[Example], of: Round, population: int) -> Drawn:
    drawn = of.drawn | {(row.id, row.content_hash) for row in sample}
    return Drawn(tuple(sample), replace(of, drawn=drawn, population=population))


def _next_look(history: History, last: Round, rules: ReviewRules) -> int:
    """A new data set begins where one has passed (by the rules of now): the error is spent anew. A refusal is the
    first look at it."""
    decided = history.of(last.number)
    passed = [decision.passed and decision.rules == rules_hash(rules) for decision in decided]
    if passed and passed[-1]:
        return 1
    return 2 if any(passed) else last.look + 1


def _unseen(rows: Sequence[Example], history: History, of: Round, said: Said) -> list[Example]:
    """The rows that nobody reviewed, as they are now, before the round `of`: what its estimate is about. All others
    have their verdict. (Where every row has one, nothing is left to be estimated: then all rows are in the sample.)

    Recorded verdicts are given for rows that may yet be drawn, so they count only where the row was drawn.
    """
    earlier = {shown for each in history.rounds if each.number < of.number for shown in each.drawn}

    def seen(shown: Shown) -> bool:
        reviews = said.get(shown, ()) if shown not in of.drawn else ()
        return bool(reviews) and (shown in earlier or any(not review.recorded for review in reviews))

    return [row for row in rows if not seen((row.id, row.content_hash))]


def _gone(rows: Sequence[Example], last: Round, said: Said) -> int:
    """Rows drawn in this round that left the data, or changed, after they were found wrong or before anybody judged
    them. A row that only changed before it was judged is still in the sample, as it is now."""
    present = {row.id: row.content_hash for row in rows}
    left = (shown for shown in last.drawn if present.get(shown[0]) != shown[1])
    return sum(not _approved(said[shown]) if shown in said else shown[0] not in present for shown in left)


def _approved(reviews: Sequence[Review]) -> bool:
    return 2 * sum(review.decision == "approve" for review in reviews) > len(reviews)


def _size(population: int, rules: ReviewRules, look: int) -> int:
    """How many rows a round draws. Where the bound decides, and after a refusal, no fewer than can show the bound: 20
    rows of which 80 % are right look like 95 % once in 15 times, so small samples would get through by repetition."""
    enough = fresh_rows(1.0, rules, look)["none_wrong"] if rules.require_lower_bound or look > 1 else None
    wanted = max(rules.min_rows, math.ceil(rules.fraction * population), enough or 0)
    return min(wanted, rules.max_rows, population)


def _ordered(rows: Sequence[Example], salt: str) -> list[Example]:
    return sorted(rows, key=lambda row: (_place(row, salt), row.id))


def _place(row: Example, salt: str) -> str:
    """Where a row stands in the draw: a hash, so that every row is as likely as any other to come first."""
    return content_id(salt, row.id)
