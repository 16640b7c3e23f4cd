"""Gates across runs: a step goes on only where the verdict it needs is about the very content that it uses."""

from __future__ import annotations

from finetune_pipeline.errors import GateRefused
from finetune_pipeline.records import Artifact


def require_verdict(gate: Artifact | None, name: str, about: Artifact) -> Artifact:
    """Refuse to go on unless the gate `name` passed for exactly the content of `about`; gives the gate back.

    A blocking check in Dagster stops only its own run; this is what makes a gate hold across runs.
    """
    if gate is None or gate.verdict is None:
        raise GateRefused(f"{name} has not judged {about.asset} {about.content_hash} yet", f"materialize {name} first")
    if gate.verdict.about != about.content_hash:
        raise GateRefused(
            f"{name} judged other data ({gate.verdict.about}) than {about.asset} has now ({about.content_hash})",
            f"materialize {name} again; a verdict holds only for the very data it saw",
        )
    if not gate.verdict.passed:
        raise GateRefused(f"{name} refused {about.asset}: {gate.verdict.summary}", gate_hint(name))
    return gate


def gate_hint(name: str) -> str:
    return {
        "suitability_report": "add examples, or set `suitability.override` to the reason for going on regardless",
        "data_quality": "read the report (`finetune status`, or the desk), fix the rows, and run again",
        "expert_review": "fix what the experts rejected in the raw data, and other rows of its kind; the next round "
        "takes rows that nobody has reviewed yet",
        "data_split": "the rows named there stand on both sides: fix their groups, and run again",
        "release_decision": "read the decision's reasons; more data, or another declaration, makes a new candidate",
        "deployed_endpoint": "the endpoint was rolled back; read the parity report for the rows that differ",
    }.get(name, "read the gate's report")
