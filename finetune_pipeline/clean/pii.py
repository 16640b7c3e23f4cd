"""Masks personal data: e-mail addresses, phone and card numbers, IBANs, IP addresses, US social security numbers.

Patterns find candidates, python-stdnum and the standard library check them (Luhn, IBAN's check digits, address
ranges), and a phone number has to have a usual form: order numbers, prices, dates and times are unchanged. Names and
postal addresses are not found: that takes a model, whose result is uncertain.

    mask("order HV-48213, ring me on 07700 900123 or mail jo@example.com")
    → ("order HV-48213, ring me on <PHONE> or mail <EMAIL>", ["PHONE", "EMAIL"])
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass

_EMAIL = re.compile(
    r"(?<![\w.+-])[A-Za-z0-9_%+-](?:[A-Za-z0-9._%+'-]{0,62}[A-Za-z0-9_%+-])?@"
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}(?![\w-])"
)
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}(?:[ -]?[A-Za-z0-9]{2,4}){3,8}(?![A-Za-z0-9])")
_CARD = re.compile(r"(?<![\w.,+-])[2-6]\d{3}(?:[ -]?\d){8,15}(?![\w-])")
_SSN = re.compile(r"(?<![\w.-])\d{3}([ -])\d{2}\1\d{4}(?![\w-])")
_IPV4 = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])")
_HEXTET = re.compile(r"[0-9A-Fa-f]{3}")
_DIGIT = re.compile(r"\d")
_VERSION = re.compile(r"(?:\bv|version|release|firmware|build|update)\.?\s*$", re.IGNORECASE)

# Phones: a number with a country code, in a usual national format, or any run of digits beside a word for telephone.
_PHONE_FORMATS = re.compile(
    r"(?<![\w:/£$€#+-])(?<![£$€#] )(?<!\d[.,])(?:"
    r"(?:\+|00)[1-9]\d{0,2}(?:[ .()/-]{0,2}\d){6,13}"  # +44 (0)20 7946 0018, 0049-30-901820
    r"|\(0?\d{2,4}\)[ .-]?\d{3,4}(?:[ .-]?\d){3,6}"  # (555) 010-4477, (020) 7946 0018
    r"|(?:1[ .-])?\d{3}[ .-]\d{3}[ .-]\d{4}"  # 555-010-4477, 1-800-555-0199
    r"|0\d(?:[ ./-]?\d){7,10}"  # 07700 900123, 030/901820-12, 01 23 45 67 89
    r"|\d{3}-\d{4}"  # 555-0199
    r")(?:\s?(?:x|ext\.?|extension)\s?\d{1,5})?(?![\w:%€£$]|[.,-]\d)",
    re.IGNORECASE,
)
_PHONE_NEAR_WORD = re.compile(r"(?<![\w:/£$€#-])(?<!\d[.,])\+?\(?\d(?:[ ()./-]{0,2}\d){5,14}(?![\w:%€£$]|[.,-]\d)")
_PHONE_WORD = re.compile(
    r"\b(?:phone|telephone|tel|call(?:ed|ing)?|ring|rang|mobile|cell|cellphone|my number|text|answer(?:s|ing)?|"
    r"whatsapp|sms|fax|dial|reach (?:me|us)|telefon|handy|anruf\w*|rufnummer|t[eé]l[eé]phone|portable)\b[^\d\n]{0,25}$",
    re.IGNORECASE,
)
_PHONE_WORD_AFTER = re.compile(r"[\s\\,(-]{0,3}(?:office|fax|phone|tel|mobile|cell)\b", re.IGNORECASE)
_OTHER_NUMBER = re.compile(
    r"\b(?:order|invoice|bill|ref|reference|ticket|tracking|parcel|shipment|case|article|item|serial|model|sku|isbn|"
    r"booking|licen[cs]e|passport|customer|member(?:ship)?|contract|policy|account|transaction|voucher|coupon|code|id|bestell\w*|rechnung\w*|"
    r"kunden\w*)\b[^\d\n]{0,15}$|(?:\bnos?\.?|#|№)\s*$",
    re.IGNORECASE,
)
_DATE = re.compile(
    r"(?:19|20)\d{2}([-./ ])\d{1,2}\1\d{1,2}(?!\d)|"
    r"\d{1,2}(?:([-./])\d{1,2}\2(?:19|20)?|[ ]\d{1,2}[ ](?:19|20))\d{2}(?![-./]?\d)"
)
_ADDRESS_DIGITS, _NUMBER_DIGITS = 1, 7  # fewer digits are not an IP address (::1), or not a number that is masked
_CONTEXT = 40  # characters before a number that are searched for a word


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding: text[start:end] is of this kind."""

    kind: str
    start: int
    end: int


def mask(text: str) -> tuple[str, list[str]]:
    """The text with each finding replaced by <KIND>, and the kinds found, in order of the text."""
    findings = find(text)
    parts, end = [], 0
    for finding in findings:
        parts += [text[end : finding.start], f"<{finding.kind}>"]
        end = finding.end
    return "".join([*parts, text[end:]]), [finding.kind for finding in findings]


def find(text: str) -> list[Finding]:
    """All findings, in order and without overlap; where two kinds overlap, the more certain one is kept."""
    findings: list[Finding] = []
    if "@" in text:
        _add(findings, text, "EMAIL", _EMAIL, lambda m: m.end())
    digits = len(_DIGIT.findall(text))
    if digits >= _ADDRESS_DIGITS:
        _add_addresses(findings, text)
    if digits >= _NUMBER_DIGITS:
        _add_numbers(findings, text)
    return sorted(findings, key=lambda finding: finding.start)


def _add_numbers(findings: list[Finding], text: str) -> None:
    _add(findings, text, "IBAN", _IBAN, _iban_end)
    _add(findings, text, "CARD", _CARD, lambda m: m.end() if _is_card(m[0]) else None)
    _add(findings, text, "SSN", _SSN, lambda m: m.end() if _is_ssn(m[0]) else None)
    _add(findings, text, "PHONE", _PHONE_FORMATS, lambda m: m.end() if _is_phone(m) else None)
    _add(findings, text, "PHONE", _PHONE_NEAR_WORD, lambda m: m.end() if _is_phone_near_word(m) else None)


def _add_addresses(findings: list[Finding], text: str) -> None:
    if text.count(".") >= 3:
        _add(findings, text, "IP", _IPV4, lambda m: m.end() if _is_ip(m) else None)
    if text.count(":") >= 2:
        _add(findings, text, "IP", _IPV6, lambda m: m.end() if _is_ip(m) else None)


def _add(
    findings: list[Finding],
    text: str,
    kind: str,
    pattern: re.Pattern[str],
    end_of: Callable[[re.Match[str]], int | None],
) -> None:
    for match in pattern.finditer(text):
        end = end_of(match)
        start = match.start()
        if end is not None and not any(start < other.end and other.start < end for other in findings):
            findings.append(Finding(kind, start, end))


def _iban_end(match: re.Match[str]) -> int | None:
    """Where the IBAN ends: the match may include a word that follows it."""
    from stdnum import iban

    candidate = match[0]
    for length in range(len(candidate), 14, -1):
        whole = length == len(candidate) or not candidate[length].isalnum()
        if whole and candidate[length - 1].isalnum() and iban.is_valid(candidate[:length]):
            return match.start() + length
    return None


def _is_card(number: str) -> bool:
    from stdnum import luhn

    digits = re.sub(r"\D", "", number)
    return len(digits) in _card_lengths(digits) and luhn.is_valid(digits)


def _card_lengths(digits: str) -> tuple[int, ...]:
    """The lengths of card numbers with this beginning (ISO/IEC 7812 issuer ranges); serial numbers rarely match."""
    if digits[0] == "4":  # Visa
        return (13, 16, 19)
    if digits[:2] in ("34", "37"):  # American Express
        return (15,)
    if digits[:2] in ("36", "38", "39") or digits[:3] in ("300", "301", "302", "303", "304", "305"):  # Diners Club
        return (14, 16)
    if "51" <= digits[:2] <= "55" or "2221" <= digits[:4] <= "2720" or digits[:2] == "35":  # Mastercard, JCB
        return (16,)
    return (16, 19) if digits[:2] in ("60", "62", "64", "65") else ()  # Discover, UnionPay


def _is_ssn(number: str) -> bool:
    from stdnum.us import ssn

    return bool(ssn.is_valid(number.replace(" ", "-")))


def _is_ip(match: re.Match[str]) -> bool:
    try:
        address = ipaddress.ip_address(match[0])
    except ValueError:
        return False
    if address.version == 6:
        return bool(_HEXTET.search(match[0])) and bool(_DIGIT.search(match[0]))  # std::a is not an address
    return not _VERSION.search(_before(match))


def _is_phone(match: re.Match[str]) -> bool:
    """The format is enough, unless the match is a date or the words before it name another kind of number."""
    digits = re.sub(r"\D", "", match[0])
    if not 7 <= len(digits) <= 20 or len(set(digits)) == 1 or _DATE.match(match[0]):
        return False
    before = _before(match)
    if len(digits) == 7:  # 555-0199 alone could be anything
        return _has_phone_word(match, before)
    return match[0].startswith("+") or not _OTHER_NUMBER.search(before) or _has_phone_word(match, before)


def _is_phone_near_word(match: re.Match[str]) -> bool:
    digits = re.sub(r"\D", "", match[0])
    before = _before(match)
    return (
        7 <= len(digits) <= 15
        and not _DATE.match(match[0])
        and _has_phone_word(match, before)
        and not _OTHER_NUMBER.search(before)
    )


def _has_phone_word(match: re.Match[str], before: str) -> bool:
    return bool(_PHONE_WORD.search(before) or _PHONE_WORD_AFTER.match(match.string, match.end()))


def _before(match: re.Match[str]) -> str:
    return match.string[max(0, match.start() - _CONTEXT) : match.start()]
