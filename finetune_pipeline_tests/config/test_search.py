"""`search`: what is tried is checked against the settings themselves when the declaration is read."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_pipeline.config import Range, Search, Task, task_from
from finetune_pipeline.errors import DeclarationError

BASE = {
    "name": "parcels",
    "sources": [{"path": "shop.csv"}, {"path": "web.csv"}],
    "base": {"path": "model", "license": "apache-2.0"},
}


def declared(parameters: Any, train: Any = None, answer: Any = None, **search: Any) -> Task:
    sections = {"train": train or {}, "answer": answer or {}, "search": {**search, "parameters": parameters}}
    return task_from({**BASE, **sections}, "the test's declaration")


def test_ranges_and_lists_of_every_parameter_are_read() -> None:
    search = declared(
        {
            "learning_rate": {"low": 1e-4, "high": 1e-2},
            "lora.r": [8, 16],
            "num_epochs": {"low": 0.5, "high": 3},
            "batch_size": [4, 8],
            "layers": [None, 4],
            "keep_general.weight": {"low": 0, "high": 0.5},
            "row_share": [0.5, 1],
            "without_sources": [[], ["web"]],
        }
    ).search
    assert isinstance(search, Search)
    tried = search.parameters.declared()
    assert tried["learning_rate"] == Range(low=1e-4, high=1e-2) and tried["lora.r"] == (8, 16)
    assert tried["layers"] == (None, 4) and tried["without_sources"] == ((), ("web",)) and len(tried) == 8
    assert task_from(BASE, "without").search is None


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ({"learning_rate": {"low": 1e-4, "high": 2}}, "learning_rate: 2: Input should be less than or equal to 1"),
        ({"lora.r": [8, 600]}, "lora.r: 600: Input should be less than or equal to 512"),
        ({"batch_size": [8.5]}, "batch_size: 8.5: Input should be a valid integer"),
        ({"layers": {"low": 0, "high": 4}}, "layers: 0: Input should be greater than or equal to 1"),
        ({"row_share": [0, 1]}, "row_share: 0: Input should be greater than 0"),
        ({"lora.r": {"low": 9, "high": 8}}, "lora.r: `low` is 9 and has to be less than `high`, which is 8"),
        ({"lora.r": [8, 8]}, "lora.r: a value occurs twice"),
        ({"keep_general.weight": {"low": 0, "high": 1, "log": True}}, "`low` has to be above 0 with `log: true`"),
        ({"learning_rate": {"low": 1e-4, "hihg": 1}}, "hihg: unknown key. Did you mean `high`?"),
        ({"lora.rr": [8]}, "lora.rr: unknown key. Did you mean `lora.r`?"),
        ({"without_sources": [["web", "shop"], ["shop", "web"]]}, "a list of sources occurs twice"),
        ({"without_sources": [["mail"]]}, "names 'mail'; the sources are shop, web"),
        ({"without_sources": [["web", "shop"]]}, "leaves out every source"),
        ({}, "nothing to search"),
    ],
)
def test_a_value_that_the_setting_refuses_is_named_before_anything_runs(parameters: Any, problem: str) -> None:
    with pytest.raises(DeclarationError) as caught:
        declared(parameters)
    assert any(problem in line for line in caught.value.problems), caught.value.problems


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        ({"train": {"method": "full"}}, "`search.parameters.lora.r` has no effect with `train.method: full`"),
        ({"metric": "score"}, "`search.metric: score` needs answers that are right or wrong"),
        (
            {
                "metric": "score",
                "answer": {"format": "label", "labels": ["a", "b"]},
                "train": {"validation": {"generate_rows": 0}},
            },
            "`train.validation.generate_rows` above 0",
        ),
        ({"metric": "reward_accuracy"}, "`search.metric: reward_accuracy` needs a `train.objective`"),
        ({"train": {"provider": {"model": "m"}}}, "`search` has no effect with `train.provider`"),
    ],
)
def test_a_search_that_contradicts_another_section_is_refused(sections: Any, problem: str) -> None:
    with pytest.raises(DeclarationError) as caught:
        declared({"lora.r": [8, 16]}, **sections)
    assert any(problem in line for line in caught.value.problems), caught.value.problems
