"""The texts of single criteria: an observed value is never rounded to the other side of its threshold."""

from __future__ import annotations

from finetune_pipeline.config import Release
from finetune_pipeline.release.criteria import SEED, format_kept, general_ability
from finetune_pipeline.release.formatting import signed_up
from finetune_pipeline.release.relative_change import relative_rise
from finetune_pipeline_tests.release.evidence import losses

RULES = Release()


def test_a_share_below_the_threshold_is_not_shown_as_the_threshold() -> None:
    valid = {f"r{i}": i < 377 for i in range(397)}  # 94.96 %
    finding = format_kept(valid, RULES)
    assert (finding.check.passed, finding.check.expected) == (False, "at least 95 % of the answers valid")
    assert finding.check.observed.startswith("377 of 397 (94.9 %), between ")


def test_a_rise_above_the_margin_is_not_shown_as_the_margin() -> None:
    pairs = losses(60, rise=0.09)
    base, tuned = zip(*pairs, strict=True)
    high = relative_rise(base, tuned, RULES.significance_level, SEED).high
    finding = general_ability(pairs, Release(general_margin=round(high, 3)))
    assert round(high, 3) < high, "the test needs a bound that is rounded down"
    assert not finding.check.passed
    assert f"and +{100 * round(high, 3) + 0.1:.1f} %" in finding.check.observed
    assert signed_up(float("inf")) == "+inf %"
