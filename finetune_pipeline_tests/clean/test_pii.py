"""Personal data is masked; order numbers, prices, dates and versions are not."""

from __future__ import annotations

from itertools import pairwise

import pytest

from finetune_pipeline.clean.pii import find, mask


def test_everything_but_the_order_number_is_masked() -> None:
    text = "order HV-48213 ... ring me on 07700 900123 or mail jo@example.com card 4111 1111 1111 1111"
    assert mask(text) == (
        "order HV-48213 ... ring me on <PHONE> or mail <EMAIL> card <CARD>",
        ["PHONE", "EMAIL", "CARD"],
    )


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("p_ortega+shop@mail.example.co.uk.", ["EMAIL"]),
        ("(o'hara-smith@example.org)", ["EMAIL"]),
        ("5555-5555-5555-4444", ["CARD"]),
        ("amex 378282246310005", ["CARD"]),
        ("DE89 3704 0044 0532 0130 00 ASAP", ["IBAN"]),
        ("gb82west12345698765432", ["IBAN"]),
        ("+44 (0)20 7946 0018", ["PHONE"]),
        ("0049-30-901820", ["PHONE"]),
        ("(555) 010-4477 or 555-010-4477", ["PHONE", "PHONE"]),
        ("1-800-555-0199 ext 12", ["PHONE"]),
        ("06 12 34 56 78", ["PHONE"]),
        ("tel. 30901820", ["PHONE"]),
        ("call me: 555-0199", ["PHONE"]),
        ("07700900123", ["PHONE"]),
        ("536-22-8726", ["SSN"]),
        ("from 192.168.0.1 and 2001:db8::ff00:42:8329", ["IP", "IP"]),
        ("email=jo@example.com,phone=07700 900123", ["EMAIL", "PHONE"]),
    ],
)
def test_personal_data_is_found(text: str, kinds: list[str]) -> None:
    masked, found = mask(text)
    assert found == kinds
    assert mask(masked) == (masked, [])


@pytest.mark.parametrize(
    "text",
    [
        "order HV-48213, HV 48213, hv48213, #48213, order no. 4821377",
        "order 0048213377 and invoice no. 030 901820 12",
        "my order number is 12345678. text me",
        "it costs 1,299.00 or £1 299 or 1.299,00 € or 10000000",
        "on 12/05/2024, 2024-05-12, 12.05.2024, 05-06-2024 10:30, 12 05 2024",
        "I called on 12-05-2024 at 10:30:15",
        "firmware 2.1.8 and version 1.2.3.4",
        "tracking 00340434161094042557, serial 490154203237518",
        "card 4111 1111 1111 1112",
        "DE88370400440532013000",
        "std::vector a::b, ratio 3:2, 16:9",
        "100 V 50 Hz, 2 x 3 x 4, 1 2 3 4 5 6 7 8 9 10 11 12",
        "@home, a@b, jo at example.com",
        "the years 1999-2003 and 20 000 000 rows",
    ],
)
def test_other_numbers_are_unchanged(text: str) -> None:
    assert mask(text) == (text, [])


def test_findings_do_not_overlap_and_are_in_order() -> None:
    text = "call 4111 1111 1111 1111 then 07700 900123, jo@example.com"
    found = find(text)
    assert [f.kind for f in found] == ["CARD", "PHONE", "EMAIL"]
    assert all(a.end <= b.start for a, b in pairwise(found))


def test_long_texts_of_digits_are_fast() -> None:
    assert mask("1 " * 20_000)[1] == []
    assert mask("1234567890-" * 3_000)[1] is not None
    assert mask("a" * 50_000 + "@")[1] == []
