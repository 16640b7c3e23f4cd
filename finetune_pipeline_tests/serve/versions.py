"""Versions to deploy, and states in which they were promoted."""

from __future__ import annotations

from typing import Any

from finetune_pipeline.serve import transitions
from finetune_pipeline.serve.deployment_state import DeploymentState, Version


def version(number: int) -> Version:
    hashes: Any = {name: f"{name}-{number}" for name in ("adapter", "adapter_key", "registered", "evaluation")}
    return Version(
        version=number, base="base", served_as="parcels", max_new_tokens=32, on_invalid="flag", log_text=True,
        at=f"2026-01-0{number}", **hashes,
    )  # fmt: skip


def promoted(*numbers: int) -> DeploymentState:
    state = DeploymentState()
    for number in numbers:
        state = transitions.promote(state, version(number), state.champion)
    return state
