"""What the patterns find in completions, and what they leave alone: a wrong alarm costs more than a miss."""

from __future__ import annotations

import pytest

from finetune_pipeline.quality.completions import cut_off, is_echo, is_refusal, placeholders


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, but I cannot assist with that request.",
        "Sorry, I can't help you with this",
        "I cannot fulfill your request.",
        "I'm unable to generate explicit content.",
        "I apologize, but I cannot generate that content",
        "I am sorry, but as an AI language model, I cannot do it",
        "As an AI language model, I don't have feelings.",
        "Good question. As an AI, I am not a lawyer.",
    ],
)
def test_refusals_of_a_model(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I cannot find this order.",
        "I'm sorry, we can't refund a used lamp.",
        "I'm sorry to hear that. Please send it back.",
        "Unfortunately I can't cancel it once it has been shipped.",
        "I can't help thinking that the cable is loose.",
        "I am the AI assistant of Halden & Voss.",
        "As an AI company, we build robots.",
        "The customer says: I can't help with that.",
    ],
)
def test_what_a_person_declines_is_no_refusal(text: str) -> None:
    assert not is_refusal(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Dear [insert name], hello", "[insert name]"),
        ("Dear [Name], hello", "[Name]"),
        ("Yours, [Your Company]", "[Your Company]"),
        ("Hi {{name}}, hello", "{{name}}"),
        ("Your order {{Order Number}} is here", "{{Order Number}}"),
        ("Go to <your address> now", "<your address>"),
        ("Lorem ipsum dolor sit amet", "Lorem ipsum"),
        ("TODO", "TODO"),
        ("It ships.\n- TODO: write the rest", "- TODO"),
        ("Answer [TBD]", "[TBD]"),
        ("XXX", "XXX"),
        ("Call XXX-XXXX", "XXX-XXXX"),
        ("Your card is XXXX.", "XXXX"),
    ],
)
def test_placeholders(text: str, found: str) -> None:
    assert placeholders(text) == [found]


@pytest.mark.parametrize(
    "text",
    [
        "See [your account](https://example.org/account).",
        "Set arr[date] to 3.",
        "Add it to your TODO list.",
        "TODO EL DÍA",
        "Super Bowl XXX, in size XXXL, with kisses xxx",
        r"\frac{{a}}{{b}} and \mathbf{{x}}",
        "Write `{{name}}` there, and:\n```\n# TODO: test\n[name]\n```",
        "Mail <EMAIL> or call <PHONE>.",
        "As said in [1] and [2].",
    ],
)
def test_what_only_looks_like_a_placeholder(text: str) -> None:
    assert placeholders(text) == []


LONG = "my lamp broke after two days of use and nobody at your shop has written back to me since"


@pytest.mark.parametrize(
    ("prompt", "completion", "echo"),
    [
        ("where is my parcel", "Where is my parcel?", True),
        (LONG, f"You wrote: {LONG}. Thanks.", True),
        (LONG, LONG.replace("two", "three") + " and more", False),
        (LONG, "Your lamp broke after two days of use: we are sorry and send another.", False),
        ("good morning", "Good morning!", False),
        ("where is my parcel", "Where is my parcel? It is on its way.", False),
        (LONG, "", False),
        (
            "Which country is the smallest in the world that has at least one square mile of area?",
            "Nauru is the smallest in the world that has at least one square mile of area",
            False,
        ),
        (LONG * 4, (LONG * 4).replace("lamp", "Lamp!", 1) + " thanks", True),
    ],
)
def test_echo_of_the_prompt(prompt: str, completion: str, echo: bool) -> None:
    assert is_echo(prompt, completion) is echo


SENTENCES = ["It ships today, because we have it."] * 30


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("Your refund has been sent to the", True),
        ("You can call us, write to us, or", True),
        ("Hello.\n\nYour parcel will arrive on Monday, bec", True),
        ("We have three of these: a lamp, a fan,", True),
        ("The lamp is near the river and close to town", False),
        ("You have a right to a refund within a month", False),
        ("Your refund has been sent to you!", False),
        ('He said "this is all right with me."', False),
        ("**It was sent to you yesterday evening.**", False),
        ("It was sent to you yesterday evening 😀", False),
        ("It is on its way.\n\nKind regards,\nAnna of Halden & Voss", False),
        ("You need:\n- a screwdriver with a long and thin handle", False),
        ("Please have a look at this page: https://example.org/help/lamps", False),
        ("It is yours for about five euros or 12", False),
        ("Yes", False),
        ("", False),
    ],
)
def test_cut_off_sentences(text: str, cut: bool) -> None:
    assert cut_off([*SENTENCES, text]) == [False] * 30 + [cut]


def test_nothing_is_cut_off_where_completions_usually_end_so() -> None:
    assert not any(cut_off(["a list of words without a full stop"] * 30 + SENTENCES))
    assert not any(cut_off(["Your refund has been sent to the"]))
