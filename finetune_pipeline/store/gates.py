"""Gates across runs: a step runs only if the verdict that it requires passed for exactly the data that it uses.

require_verdict(store.current("data_quality"), "data_quality", clean)
GateRefused: Gate data_quality failed for clean_examples: 91.2 % of 754 rows pass, 95 % required
"""

from __future__ import annotations

from finetune_pipeline.errors import GateRefused
from finetune_pipeline.records import Artifact


def require_verdict(gate: Artifact | None, name: str, about: Artifact) -> Artifact:
    """Returns `gate` if it passed for exactly the content of `about`; else GateRefused.

    A blocking check in Dagster stops only its own run; this function enforces the gate in every later run.
    """
    if gate is None or gate.verdict is None:
        raise GateRefused(
            f"Gate {name} has no verdict for {about.asset} {about.content_hash} yet", f"materialize {name} first"
        )
    if gate.verdict.about != about.content_hash:
        raise GateRefused(
            f"Gate {name} checked other data ({gate.verdict.about}) than {about.asset} has now ({about.content_hash})",
            f"materialize {name} again: a verdict is valid only for the data that was checked",
        )
    if not gate.verdict.passed:
        raise GateRefused(f"Gate {name} failed for {about.asset}: {gate.verdict.summary}", gate_hint(name))
    return gate


def gate_hint(name: str) -> str:
    """What to do when this gate failed."""
    return {
        "suitability_report": "add examples, or set `suitability.override` to the reason for continuing",
        "data_quality": "read the report (`finetune status`, or the desk), fix the rows, and run again",
        "expert_review": "fix the rejected rows and similar rows in the sources, and run again; the next round samples "
        "rows that nobody has reviewed yet",
        "data_split": "fix the groups of the rows named above, which are in training and test rows, and run again",
        "adapter": "read the checks in the desk, change `train` in task.yaml, and run again",
        "release_decision": "read the reasons of the decision; add data or change the declaration for a new candidate",
        "deployed_endpoint": "read parity.jsonl in the artifact's folder for the rows that differ, or run `finetune "
        "unhold TASK` if the version was rolled back; no traffic was moved",
    }.get(name, "read the gate's report")
