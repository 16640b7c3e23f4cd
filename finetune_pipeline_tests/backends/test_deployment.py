"""Which backend a job gets: the deployment's file, what the task sets again, and what does not fit together."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_pipeline.backends.deployment import backend_for
from finetune_pipeline.config import Backend, Train
from finetune_pipeline.errors import DeclarationError, StorageError

CLUSTER = "kind: kubernetes\nnodes: 2\nkubernetes:\n  image: a@sha256:1\n  volume_claim: data\n  mount_path: /data\n"


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "backend.yaml"
    monkeypatch.setenv("FINETUNE_BACKEND", str(path))
    return path


def test_without_any_setting_a_job_runs_here_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FINETUNE_BACKEND", raising=False)
    assert backend_for() == Backend()
    assert backend_for(Train().backend).kind == "local"


def test_a_task_sets_single_keys_of_the_deployment_again(deployment: Path) -> None:
    deployment.write_text(CLUSTER, "utf-8")
    own = Backend.model_validate({"processes_per_node": 4, "kubernetes": {"namespace": "team"}})
    merged = backend_for(own)
    assert (merged.kind, merged.nodes, merged.processes_per_node) == ("kubernetes", 2, 4)
    assert (merged.kubernetes.image, merged.kubernetes.namespace) == ("a@sha256:1", "team")
    assert backend_for(Backend(kind="local", nodes=1)).kind == "local"


def test_where_a_training_runs_is_no_part_of_its_declared_values() -> None:
    """So it changes no key: the same training on a cluster is not made again."""
    assert Train(backend=Backend(kind="ray")).model_dump(mode="json") == Train().model_dump(mode="json")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"processes_per_node": 2}, "set `kind: torchrun` for several"),
        ({"kind": "torchrun", "nodes": 2}, "rendezvous: missing"),
        ({"kind": "torchrun", "rendezvous": "gpu1"}, "has no port"),
        ({"kind": "ray", "ray": {"address": "gpu1:6379"}}, "no address of a dashboard"),
        ({"kind": "kubernetes", "kubernetes": {"image": "a"}}, "kubernetes.volume_claim: missing"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings: dict[str, object], problem: str) -> None:
    with pytest.raises(DeclarationError) as caught:
        backend_for(Backend.model_validate(settings))
    assert any(problem in each for each in caught.value.problems)


def test_a_wrong_file_is_named_with_every_problem(deployment: Path) -> None:
    with pytest.raises(StorageError, match=r"backend\.yaml is missing"):
        backend_for()
    deployment.write_text("kind: slurm\nnode: 2\n", "utf-8")
    with pytest.raises(DeclarationError, match=r"backend\.yaml is no backend") as caught:
        backend_for()
    assert len(caught.value.problems) == 2 and "Did you mean `nodes`?" in caught.value.problems[1]
    deployment.write_text("kind: local\nkind: ray\n", "utf-8")
    with pytest.raises(DeclarationError, match="occurs twice"):
        backend_for()
    deployment.write_text("torchrun", "utf-8")
    with pytest.raises(DeclarationError, match="not a mapping"):
        backend_for()
