"""General texts in training: the divergence equals its definition, and the tuned model stays closer to its base."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from finetune_pipeline.config import KeepGeneral
from finetune_pipeline.errors import JobCanceled
from finetune_pipeline.records import Silent
from finetune_pipeline.train import checkpoint
from finetune_pipeline.train import forward as forward_module
from finetune_pipeline.train.loop import Loop
from finetune_pipeline.train.padding import PaddedForward
from finetune_pipeline.train.replay import Replay, general_rows, general_texts, replay_for, whole_texts
from finetune_pipeline.train.tokenize import TokenizedExample, tokenize
from finetune_pipeline_tests.train.setup import RULES, LogRecorder, Setup, StopAfter

KEEP = KeepGeneral(weight=2.0, texts=2)
STEPS = 6


def short_texts(setup: Setup) -> list[TokenizedExample]:
    """General texts, the shortest first (the context of the tiny model is small)."""
    texts = whole_texts(tokenize(general_texts(), setup.base.tokenizer, "", setup.base.end_ids))
    return sorted(texts, key=lambda row: row.tokens)


def setup_with(folder: Path, keep: KeepGeneral = KEEP, some: slice = slice(0, 7), **rules: Any) -> tuple[Setup, Replay]:
    """A setup with some of the shortest general texts, measured before the weights are changed."""
    setup = Setup(folder, RULES.model_copy(update=rules), changed=False)
    replay = Replay(setup.forward, short_texts(setup)[some], keep, RULES.seed, bf16=False)
    replay.measure(STEPS, 4096)
    setup.change()
    return setup, replay


def loop_with(setup: Setup, replay: Replay, folder: Path, report: Any = None) -> Loop:
    loop = setup.loop(folder, report)
    loop.replay = replay
    return loop


def divergence_of(setup: Setup, replay: Replay, step: int) -> Any:
    return replay.divergence(step, setup.forward.states(replay.texts_at(step)))


@pytest.mark.parametrize(("method", "layers"), [("lora", None), ("lora", 1), ("full", None)])
def test_divergence_and_gradient_equal_those_of_every_text_alone(
    tiny_model: Path, method: str, layers: int | None
) -> None:
    import torch

    packed, replay = setup_with(tiny_model, method=method, layers=layers)
    plain, again = setup_with(tiny_model, method=method, layers=layers)
    base = Setup(tiny_model, RULES.model_copy(update={"method": method}), changed=False)
    if method == "full":
        with torch.no_grad():
            for setup in (packed, plain):
                for weight in setup.weights.values():
                    weight *= 1.05
    divergence = divergence_of(packed, replay, 5)
    divergence.backward()
    total, count = torch.zeros(()), 0
    for text in again.texts_at(5):
        ids = torch.tensor([text.prompt + text.completions[0].ids])
        with torch.no_grad():
            before = torch.softmax(base.model(input_ids=ids).logits[0, :-1], dim=-1)
        tuned = torch.softmax(plain.model(input_ids=ids).logits[0, :-1], dim=-1)
        total = total + (before * (before.log() - tuned.log())).sum()
        count += text.learned
    (total / count).backward()
    assert float(divergence.detach()) == pytest.approx(float(total.detach()) / count, rel=1e-4)
    for name, weight in packed.weights.items():
        difference = torch.linalg.norm(weight.grad - plain.weights[name].grad) / torch.linalg.norm(weight.grad)
        assert float(difference) < 1e-3, name


@pytest.mark.parametrize("tokens", [1, 7, 30])
def test_logits_in_chunks_give_the_same_divergence_and_gradient(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    import torch

    results = []
    for limit in (None, tokens):
        setup, replay = setup_with(tiny_model, keep=KeepGeneral(texts=5))
        if limit:
            monkeypatch.setattr(forward_module, "LOGITS_BYTES", 4 * setup.forward.vocabulary * limit)
        divergence = divergence_of(setup, replay, 3)
        divergence.backward()
        results.append((float(divergence.detach()), {n: w.grad for n, w in setup.weights.items()}))
    (whole, gradients), (chunked, others) = results
    assert chunked == pytest.approx(whole, rel=1e-6)
    for name, gradient in gradients.items():
        assert float(torch.linalg.norm(gradient - others[name]) / torch.linalg.norm(gradient)) < 1e-5, name


def test_padded_rows_have_the_same_divergence(tiny_model: Path) -> None:
    setup, replay = setup_with(tiny_model)
    expected = float(divergence_of(setup, replay, 2).detach())
    padded = Setup(tiny_model, changed=False)
    padded.forward = PaddedForward(padded.model)  # type: ignore[assignment]
    other = Replay(padded.forward, short_texts(padded)[:7], KEEP, RULES.seed, bf16=False)
    other.measure(STEPS, 4096)
    padded.change()
    assert float(divergence_of(padded, other, 2).detach()) == pytest.approx(expected, rel=1e-4)


def test_the_step_with_general_texts_has_the_same_loss_of_the_task(tiny_model: Path, tmp_path: Path) -> None:
    setup, replay = setup_with(tiny_model)
    state = checkpoint.TrainingState(max_tokens=4096)
    with_texts, figures, _ = loop_with(setup, replay, tmp_path)._backward(setup.rows, state)
    without, none, _ = setup.loop(tmp_path)._backward(setup.rows, state)
    assert with_texts == pytest.approx(without, rel=1e-5)
    assert figures["general_divergence"] > 0 and none == {}


def test_general_texts_longer_than_the_models_limit_are_skipped_and_logged(tiny_model: Path) -> None:
    setup = Setup(tiny_model)
    rules = RULES.model_copy(update={"keep_general": KEEP})
    lengths = [text.tokens for text in short_texts(setup)]
    limit, recorder = lengths[10], LogRecorder()
    texts = general_rows(setup.base, rules)
    setup.model.config.max_position_embeddings = limit
    replay = replay_for(setup.forward, setup.base, rules, texts, recorder)
    assert replay is not None
    kept = sum(length <= limit for length in lengths)
    assert len(replay._texts) == kept < len(lengths)
    assert f"{len(lengths) - kept} of {len(lengths)} general texts are skipped" in recorder.lines[0]
    setup.model.config.max_position_embeddings = 3
    assert replay_for(setup.forward, setup.base, rules, texts, LogRecorder()) is None


def test_every_pass_over_the_texts_uses_each_once(tiny_model: Path) -> None:
    _, replay = setup_with(tiny_model, keep=KeepGeneral(texts=1))
    first = [replay.texts_at(step)[0].id for step in range(7)]
    second = [replay.texts_at(step)[0].id for step in range(7, 14)]
    assert sorted(first) == sorted(second)
    assert first != second
    assert len(set(first)) == 7


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_training_resumed_with_general_texts_has_the_same_weights(
    tiny_model: Path, tmp_path: Path, method: str
) -> None:
    import torch

    uninterrupted, replay = setup_with(tiny_model, method=method)
    loop = loop_with(uninterrupted, replay, tmp_path / "a")
    loop.run(uninterrupted.rows, uninterrupted.rows[:3], checkpoint.TrainingState(), uninterrupted.optimizer)
    stopped, replay = setup_with(tiny_model, method=method)
    loop = loop_with(stopped, replay, tmp_path / "b", StopAfter(3))
    with pytest.raises(JobCanceled):
        loop.run(stopped.rows, stopped.rows[:3], checkpoint.TrainingState(), stopped.optimizer)
    resumed, replay = setup_with(tiny_model, method=method)
    state = checkpoint.load(tmp_path / "b", resumed.weights, resumed.optimizer, Silent())
    loop = loop_with(resumed, replay, tmp_path / "b")
    loop.run(resumed.rows, resumed.rows[:3], state, resumed.optimizer)
    assert state.history[-1]["general_divergence"] > 0
    for name, weight in uninterrupted.weights.items():
        assert torch.equal(weight, resumed.weights[name]), name


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_tuned_model_stays_closer_to_its_base_on_unseen_texts(
    tiny_model: Path, tmp_path: Path, method: str
) -> None:
    import torch

    distance = {}
    for weight in (0.0, 5.0):
        setup = Setup(tiny_model, RULES.model_copy(update={"method": method}), changed=False)
        texts = short_texts(setup)
        replay = Replay(setup.forward, texts[:7], KeepGeneral(weight=weight, texts=2), RULES.seed, bf16=False)
        unseen = Replay(setup.forward, texts[7:14], KeepGeneral(texts=7), 0, bf16=False)
        replay.measure(STEPS, 4096)
        unseen.measure(1, 4096)
        loop = loop_with(setup, replay, tmp_path / str(weight))
        loop.run(setup.rows, setup.rows[:3], checkpoint.TrainingState(), setup.optimizer)
        with torch.no_grad():
            distance[weight] = float(divergence_of(setup, unseen, 0))
    assert distance[5.0] < 0.7 * distance[0.0]


def test_no_text_of_the_evaluation_is_used_for_training() -> None:
    lines = (files("finetune_pipeline.evaluate") / "general.jsonl").read_text("utf-8").splitlines()
    measured = [json.loads(line) for line in lines]

    def plain(text: str) -> str:
        return " ".join(re.findall(r"\w+", text.lower()))

    trained = general_texts()
    assert len({row.id for row in trained}) == len(trained) >= 400
    assert len(measured) >= 200
    assert not {plain(row.prompt) for row in trained} & {plain(row["prompt"]) for row in measured}
    sentences = {plain(s) for row in trained for s in re.split(r"[.!?\n]", row.completion) if len(s.split()) > 3}
    assert not sentences & {plain(s) for row in measured for s in re.split(r"[.!?\n]", row["completion"])}
