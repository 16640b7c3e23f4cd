"""The difference to the best prompt in `finetune status`."""

from __future__ import annotations

import json
from pathlib import Path

from finetune_pipeline.cli.status import _difference
from finetune_pipeline.records import Artifact


def decision(folder: Path, gain: object) -> Artifact:
    (folder / "decision.json").write_text(json.dumps({"figures": {"gain": gain}}), "utf-8")
    return Artifact("release_decision", "k", "c", folder, {})


def test_the_difference_to_the_best_prompt_is_shown(tmp_path: Path) -> None:
    gain = {"over": "few_shot", "difference": 0.1, "interval": [0.02, 0.18]}
    assert "+10.0 points (95 % interval +2.0 to +18.0)" in _difference(decision(tmp_path, gain))


def test_a_decision_without_a_prompted_baseline_has_no_difference(tmp_path: Path) -> None:
    assert _difference(decision(tmp_path, None)) == ""
