"""Text that many rows share is left out: instructions, templates, and crowds of rows that differ in one value."""

from __future__ import annotations

import random

import pytest

from finetune_pipeline.clean.similarity import measure

INSTRUCTION = (
    "You work at the help desk of a bank. Read what the customer writes below and decide which of the known intents it "
    "is about; think about what the person wants to reach, not about single words. Answer with the name of the intent "
    "and with nothing else, in lower case, without quotes and without a full stop at the end. If none of them seems "
    "to fit, choose the one that is nearest. Here is the message: "
)
CITIES = ("Paris", "Rome", "Berlin", "Madrid", "London", "Vienna", "Prague", "Lisbon", "Oslo", "Athens", "Dublin")


def prompts(count: int, seed: int = 1) -> list[str]:
    """Distinct prompts of random words; every tenth is nearly a copy of the one before."""
    random_ = random.Random(seed)
    words = ["".join(random_.choices("abcdefghijklmnoprstu", k=random_.randint(2, 8))) for _ in range(600)]
    made: list[str] = []
    for n in range(count):
        is_copy = n % 10 == 9
        made.append(f"{made[-1]} {random_.choice(words)}" if is_copy else " ".join(random_.choices(words, k=12)))
    return made


@pytest.mark.parametrize("threshold", [0.6, 0.8])
def test_an_instruction_before_every_prompt_changes_nothing(threshold: float) -> None:
    plain = prompts(400)
    expected = measure(plain, threshold).clusters()
    assert len(expected) == 40
    assert measure([INSTRUCTION + text for text in plain], threshold).clusters() == expected
    after = measure([f"{text}\n\n{INSTRUCTION}" for text in plain], threshold).clusters()
    assert len({tuple(cluster) for cluster in after} ^ {tuple(cluster) for cluster in expected}) <= 2, (
        "grams across the boundary differ"
    )
    assert measure([INSTRUCTION + text for text in plain], threshold).ignored > 0.8


def test_each_of_several_instructions_is_left_out() -> None:
    plain = prompts(600)
    instructions = [f"{word} " * 30 for word in ("translate", "classify", "summarize", "correct")]
    alike = measure([instructions[n // 10 % 4] + text for n, text in enumerate(plain)], 0.6)
    assert alike.clusters() == measure(plain, 0.6).clusters()


@pytest.mark.parametrize("count", [1, 2, 20])
def test_instructions_made_of_the_words_of_the_prompts_change_nothing(count: int) -> None:
    """Only the instruction is left out; the same words in a prompt are compared."""
    plain = prompts(1200)
    words = [word for text in plain[:200] for word in text.split()]
    instructions = [" ".join(random.Random(n).choices(words, k=60)) for n in range(count)]
    alike = measure([f"{instructions[n // 10 % count]} {text}" for n, text in enumerate(plain)], 0.8)
    assert set(alike.pairs()) == set(measure(plain, 0.8).pairs())
    assert alike.clusters() == measure(plain, 0.8).clusters()


def test_rows_of_one_template_are_not_one_cluster() -> None:
    texts = [f"dear team please cancel order number {n} as soon as you can, thanks a lot" for n in range(2000)]
    assert max(map(len, measure(texts, 0.6).clusters()), default=0) < 100


def test_a_template_with_few_values_is_separated_and_reported() -> None:
    days = ("Monday", "Tuesday", "Friday", "Sunday")
    routes = [f"book a flight from {a} to {b} on {d}" for a in CITIES for b in CITIES for d in days]
    texts = [f"{route} for {n} persons" for route in routes for n in range(1, 5)]
    alike = measure(texts, 0.6)
    assert max(map(len, alike.clusters()), default=0) < 0.15 * len(texts)
    assert sum(alike.raised().values()) > 0
    places = range(len(texts))
    found, exact = (
        {frozenset((int(alike.at[i]), int(alike.at[j]))) for i, j, _ in pairs if alike.at[i] != alike.at[j]}
        for pairs in (alike.pairs(), alike.between(places, places))
    )
    assert found <= exact, "minhash and exact use the same definition"
    assert len(found) >= 0.99 * len(exact)


def test_common_phrases_are_compared_like_any_other_text() -> None:
    """Leaving them out would hide near duplicates: most of what two rows share is common."""
    random_ = random.Random(4)
    words = ["".join(random_.choices("abcdefghijklmnoprstu", k=6)) for _ in range(300)]
    texts = [f"hello can you help me with {' '.join(random_.choices(words, k=3))} thanks a lot" for _ in range(200)]
    texts += [text.replace("hello", "hallo") for text in texts[:50]]
    alike = measure(texts, 0.8)
    assert alike.ignored == 0
    assert {(i, i + 200) for i in range(50)} <= {(i, j) for i, j, _ in alike.pairs()}


def test_a_short_instruction_before_short_prompts_is_left_out_of_the_crowd() -> None:
    random_ = random.Random(4)
    texts = [f"What kind of message is this: {''.join(random_.choices('abcdefghijkl', k=9))}" for _ in range(300)]
    assert measure(texts, 0.6).clusters() == []


def test_few_texts_are_compared_whole() -> None:
    texts = [INSTRUCTION + text for text in prompts(10)]
    assert measure(texts, 0.6).ignored == 0
    assert len(measure(texts, 0.6).clusters()) == 1


@pytest.mark.parametrize(
    "texts",
    [
        ["where is my order?"] * 10_000,
        ["a" * n for n in range(1, 500)],
        list("abcdefghijklmnopqrstuvwxyz0123456789") * 3,
        [" ".join(random.Random(n).choices(CITIES, k=100_000)) for n in range(4)],
        ["".join(random.Random(n).choices("注文番号配送状況返品交換支払方法確認", k=30)) for n in range(300)],
        ["".join(random.Random(n).choices("😀😃🎉👍🏽👩‍👩‍👧🇩🇪", k=6)) for n in range(300)],
        ["", " ", "?", "!", "...", "\ud800"],
    ],
    ids=["equal", "one character", "single letters", "very long", "no spaces", "emoji", "nothing"],
)
def test_unusual_texts_are_measured(texts: list[str]) -> None:
    alike = measure(texts, 0.6)
    half = len(texts) // 2
    linked = {i for i, _, _ in alike.between(range(half), range(half, len(texts)))}
    assert linked <= set(range(half))
    assert all(1 < len(cluster) <= len(texts) for cluster in alike.clusters())


def test_a_threshold_outside_its_range_is_an_error() -> None:
    for threshold in (0.0, 1.1):
        with pytest.raises(ValueError, match="threshold"):
            measure(["a"], threshold)
