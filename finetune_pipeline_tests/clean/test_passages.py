"""Instructions and other long passages are cut out of texts, and the rest of the prompts is unchanged."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from finetune_pipeline.clean import passages
from finetune_pipeline.clean.passages import MANY, MIN_TEXTS, WINDOW, without_passages

VOCABULARY = (
    "how do i get my new card when will the money arrive in account please tell me why is it that this transfer of "
    "yesterday still has not been made what can we change where does one find which number belongs to whom"
)
WORDS = VOCABULARY.split()


def instruction(seed: int, words: int = 40) -> str:
    """An instruction made of the words of the prompts."""
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def prompts(count: int, words: int = 9) -> list[str]:
    random_ = random.Random(0)
    return [f"{' '.join(random_.choices(WORDS, k=words))} {n}" for n in range(count)]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda text, n: f"{instruction(1)} {text}",
        lambda text, n: f"{text} {instruction(1)}",
        lambda text, n: f"{instruction(1)} {text} {instruction(2)}",
        lambda text, n: f"{instruction(n % 20)} {text}",
        lambda text, n: f"{instruction(n % 20)} {instruction(77)} {text}",
        lambda text, n: f"{instruction(77)} {instruction(n % 20)} {text} {instruction(n % 3 + 50)}",
    ],
    ids=["before", "behind", "around", "twenty", "twenty and one", "three levels"],
)
def test_the_prompt_is_left(wrap: Callable[[str, int], str]) -> None:
    plain = prompts(1200)
    assert without_passages([wrap(text, n) for n, text in enumerate(plain)]) == plain


def test_a_passage_in_the_middle_is_cut_and_the_text_around_it_is_kept() -> None:
    left, right = prompts(200), prompts(400)[200:]
    found = without_passages([f"{a} {instruction(1)} {b}" for a, b in zip(left, right, strict=True)])
    assert found == [f"{a} {b}" for a, b in zip(left, right, strict=True)]


def test_the_result_does_not_depend_on_order_chunks_or_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = prompts(600)
    texts = [f"{instruction(n % 4)} {text}" for n, text in enumerate(plain)]
    monkeypatch.setattr(passages, "_CHUNK_CHARS", 1000)
    monkeypatch.setattr(passages, "_SAMPLE_CHARS", sum(map(len, texts)) // 3)
    assert without_passages(texts) == plain
    order = random.Random(1).sample(range(600), 600)
    assert without_passages([texts[i] for i in order]) == [plain[i] for i in order]


def test_variants_of_one_long_text_are_kept_whole() -> None:
    random_ = random.Random(2)
    texts = prompts(900)
    for n in range(100):
        variant = instruction(1, words=60).split()
        variant[random_.randrange(len(variant))] = f"word{n}"
        texts.append(" ".join(variant))
    assert without_passages(texts) == texts


def test_passages_that_are_short_or_in_few_texts_are_kept() -> None:
    few = [f"{instruction(1)} {text}" for text in prompts(MANY - 1)] + prompts(400)[200:]
    short = [f"{instruction(1)[: WINDOW - 4]} {text}" for text in prompts(200)]
    little = [f"{instruction(1)} {text}" for text in prompts(MIN_TEXTS - 1)]
    for texts in (few, short, little, [], [""] * 30, ["\ud800 " * 100]):
        assert without_passages(texts) == texts


def test_a_text_that_consists_of_the_passage_is_kept() -> None:
    plain = prompts(200)
    assert without_passages([instruction(1), *(f"{instruction(1)} {text}" for text in plain)]) == [
        instruction(1),
        *plain,
    ]


def test_a_passage_without_spaces_is_cut() -> None:
    random_ = random.Random(3)
    plain = ["".join(random_.choices("注文番号配送状況返品交換支払方法確認", k=30)) for _ in range(300)]
    head = "".join(random_.choices("あなたは銀行のヘルプデスクで働いています", k=100))
    cut = without_passages([head + text for text in plain])
    assert sum(left == text for left, text in zip(cut, plain, strict=True)) > 0.9 * len(plain)
