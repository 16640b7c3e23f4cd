"""What a trial gets, and what a training makes of it."""

from __future__ import annotations

from typing import Any

from finetune_pipeline.config import Lora, Parameters, Train
from finetune_pipeline.train.search.space import applied, as_declared, combinations, decoded, encoded, suggest

RULES = Train(learning_rate=1e-3, lora=Lora(r=16, alpha=32))


def space(**parameters: Any) -> Parameters:
    return Parameters.model_validate({name.replace("__", "."): value for name, value in parameters.items()})


def test_proposed_values_are_within_the_space_and_of_the_type_of_the_setting() -> None:
    import optuna

    parameters = space(
        learning_rate={"low": 1e-4, "high": 1e-2},
        lora__r=[8, 16],
        batch_size={"low": 2, "high": 4},
        layers=[None, 4],
        num_epochs={"low": 0.5, "high": 3},
        without_sources=[[], ["web", "shop"]],
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    found = [suggest(study.ask(), parameters) for _ in range(40)]
    assert {type(values["batch_size"]) for values in found} == {int} == {type(values["lora.r"]) for values in found}
    assert {values["layers"] for values in found} == {None, 4}
    assert {tuple(values["without_sources"]) for values in found} == {(), ("web", "shop")}
    rates = sorted(values["learning_rate"] for values in found)
    assert rates[0] >= 1e-4 and rates[-1] <= 1e-2 and rates[len(rates) // 2] < 3e-3, "equal ratios, not differences"
    for values in found:
        assert Train.model_validate(applied(RULES, values).model_dump()) == applied(RULES, values)


def test_alpha_follows_the_rank_and_rows_are_no_setting() -> None:
    rules = applied(RULES, {"lora.r": 4, "keep_general.weight": 0.5, "layers": None, "row_share": 0.5})
    assert (rules.lora.r, rules.lora.alpha) == (4, 8)
    assert rules.keep_general.weight == 0.5 and rules.keep_general.texts == RULES.keep_general.texts
    assert applied(RULES, {"row_share": 0.5, "without_sources": ["web"]}) == RULES
    assert applied(Train(lora=Lora(r=64, alpha=1)), {"lora.r": 8}).lora.alpha == 1


def test_the_declared_settings_are_tried_first_as_far_as_the_space_has_them() -> None:
    parameters = space(learning_rate={"low": 1e-4, "high": 5e-4}, lora__r=[8, 16], layers=[None, 2], row_share=[0.5, 1])
    assert as_declared(RULES, parameters) == {"lora.r": 16, "layers": None, "row_share": 1.0}


def test_a_space_of_lists_that_is_small_enough_is_tried_completely() -> None:
    parameters = space(lora__r=[8, 16], without_sources=[[], ["web"]])
    assert combinations(parameters, 4) == [
        {"lora.r": r, "without_sources": without} for r in (8, 16) for without in ([], ["web"])
    ]
    assert combinations(parameters, 3) == []
    assert combinations(space(lora__r=[8, 16], row_share={"low": 0.1, "high": 1}), 100) == []


def test_values_survive_their_form_in_the_journal() -> None:
    for name, value in (("without_sources", ["web", "a, b"]), ("without_sources", []), ("layers", None), ("lora.r", 8)):
        assert decoded(name, encoded(name, value)) == value
