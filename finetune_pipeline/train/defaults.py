"""Default settings that depend on the size of the base model, the method and the objective; each with its source.

    learning_rate("lora", "sft", 134_515_008)      # Default(0.002, "measured here: …")
    with_defaults(task.train, 134_515_008)         # (Train(learning_rate=0.002, …), {"learning_rate": "default for …"})

The best rate of LoRA is about 10 times that of full fine-tuning, at any size and rank (Schulman et al., "LoRA Without
Regret", 2025), so each row has one rate for adapters and a tenth of it for all weights. It falls with the size of the
model. What does not depend on the size is a plain default of its setting: 2 epochs (as SmolLM2's recipes at 135M and at
1.7B; preference recipes have 1 to 3), and 16 rows a step (Dettmers et al., arXiv:2305.14314, table 9: at every size;
LoRA loses more than full fine-tuning does with larger batches, Schulman et al.).

"Handbook" is huggingface/alignment-handbook, recipes/.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from finetune_pipeline.config import Train

FULL_SHARE = 0.1  # of the rate of an adapter


@dataclass(frozen=True, slots=True)
class Rate:
    """The peak learning rate of an adapter for models of up to `parameters`, and where it is from."""

    parameters: float
    rate: float
    source: str


@dataclass(frozen=True, slots=True)
class Default:
    """A value, and where it is from."""

    value: float
    source: str


SFT = (
    Rate(3e8, 2e-3, "measured here with SmolLM2-135M: 1.5e-3 to 2.5e-3 in the sample task, 2e-3 in BANKING77 and E2E"),
    Rate(1e9, 1e-3, "Schulman et al., 2025: about 5e-4 (2000 / hidden size)^0.78 for Llama; hidden size 960"),
    Rate(4e9, 5e-4, "Schulman et al., 2025: about 5e-4 (2000 / hidden size)^0.78 for Llama; hidden size 2048"),
    Rate(2e10, 2e-4, "QLoRA at 7B and 13B, arXiv:2305.14314, table 9; handbook: zephyr-7b-beta/sft"),
    Rate(inf, 1e-4, "QLoRA at 33B and 65B, arXiv:2305.14314, table 9"),
)
PREFERENCE = (  # dpo, ipo, kto: the model stays near the one before training
    Rate(4e9, 1e-5, "10 times the 1e-6 of SmolLM2's DPO at 135M to 1.7B; handbook: smollm2/dpo"),
    Rate(inf, 5e-6, "Zephyr's DPO at 7B, 5e-6 with QLoRA and 5e-7 with all weights; handbook: zephyr-7b-beta/dpo"),
)
ORPO = (Rate(inf, 8e-5, "10 times the 8e-6 of ORPO with all weights, Hong et al., arXiv:2403.07691"),)
RATES = {"sft": SFT, "dpo": PREFERENCE, "ipo": PREFERENCE, "kto": PREFERENCE, "orpo": ORPO}


def learning_rate(method: str, objective: str, parameters: int) -> Default:
    """The default peak learning rate of a method and objective for a base model of `parameters`. KeyError for an
    unknown objective."""
    row = next(row for row in RATES[objective] if parameters <= row.parameters)
    if method != "full":
        return Default(row.rate, row.source)
    source = f"a tenth of an adapter's (Schulman et al., 2025): {row.source}"
    return Default(float(f"{row.rate * FULL_SHARE:.2g}"), source)


def with_defaults(rules: Train, parameters: int) -> tuple[Train, dict[str, str]]:
    """The rules with every default that depends on the base model, and for each of those settings where it is from."""
    if rules.learning_rate is not None:
        return rules, {}
    found = learning_rate(rules.method, rules.objective, parameters)
    about = f"default for {rules.method}, {rules.objective} and {parameters / 1e6:,.0f} million parameters"
    return rules.model_copy(update={"learning_rate": found.value}), {"learning_rate": f"{about} ({found.source})"}
