"""Detects refusals, placeholders, echoes of the prompt and cut-off endings in completions (English patterns).

    is_refusal("I'm sorry, but I can't help with that.")             # True
    placeholders("Dear [insert name], ...")                          # ["[insert name]"]
    is_echo("Where is my parcel?", "where is my parcel?")            # True
    cut_off(["It ships today.", ..., "Your refund has been sent to the"])   # [False, ..., True]

A support agent's "I'm sorry, but I cannot find this order" is no refusal, "TODO" in a sentence or in code no
placeholder, and a signature or a list without a full stop is not cut off.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from finetune_pipeline.clean.markup import outside_code

# How models refuse: the word lists with which ShareGPT conversations are cleaned for training ("as an AI language
# model"), and the prefixes of Zou et al. 2023, arXiv 2307.15043, each with the verb and the object that make it one.
_CANNOT = r"(?:can(?:no|')?t|can not|won't|will not|am (?:unable|not able) to|'m (?:unable|not able) to)"
_REQUEST = r"(?:that|this|it|such|(?:your|this|that) (?:request|question|task)|requests? (?:like|of) )"
_CONTENT = (
    r"(?:that|this|such|explicit|harmful|illegal|hateful|offensive|inappropriate|sexual|violent|dangerous|content)"
)
_REFUSED = (
    rf"(?:(?:assist|help)(?: you)? (?:with|in) {_REQUEST}|(?:fulfil+|comply with) {_REQUEST}"
    rf"|(?:generate|create|write|produce) {_CONTENT}|engage in|answer (?:that|this)|continue this conversation)"
)
_REFUSAL = re.compile(
    rf"\A\W*(?:(?:i'm|i am) (?:very |really |so |truly )?sorry|sorry|i apologi[sz]e|my apologies|unfortunately)?"
    rf"[,.;:]?\s*(?:but |however,? |for the confusion,? )*(?:as an ai[\w ]*, )?i ?{_CANNOT} {_REFUSED}\b",
    re.IGNORECASE,
)
_AS_AN_AI = re.compile(
    r"\bas an? (?:ai|artificial intelligence|(?:large )?language model)\b[\w ]{0,30},? "
    r"i(?:'m| am| do| don't| can| can't| cannot| have| lack)\b",
    re.IGNORECASE,
)

_NAMED = (
    "name|full name|first name|last name|company|company name|customer|customer name|date|time|address|phone|"
    "phone number|email|email address|order number|order id|link|url|amount|city|job title|title|signature"
)
_PLACEHOLDER = re.compile(
    r"(?<![\w}])\{\{ ?[A-Za-z_][\w .-]{0,40} ?\}\}"  # {{name}}, {{ customer.name }}
    r"|(?<![\w\])])\[(?:(?i:insert|your|enter|add|fill in|placeholder)\b[^\[\]\n]{0,60}"  # [insert name], [Your name]
    rf"|(?i:{_NAMED}))\](?![(\[:])"  # [Name]; not [name](link)
    r"|<(?i:insert|your|enter)[ _-][^<>\n]{1,40}>"  # <your name>
    r"|(?i:\blorem ipsum\b)"
    r"|(?m:^[ \t]*(?:[-*#/]+[ \t]*)?(?:TODO|TBD|FIXME)(?=[:(]|[ \t]*$))|[\[<(](?:TODO|TBD|FIXME)\b[^\]>)\n]{0,60}[\]>)]"
    r"|\A\s*[Xx]{3,}\s*\Z|\[[Xx]{2,}\]|(?<![\w-])X{4,}(?![\w-])|\bX{3}-X{3,4}(?:-X{4})?\b"  # XXX, [xx], XXX-XXXX
)
_HINT = re.compile(r"[\[{<]|TODO|TBD|FIXME|[Ll]orem|LOREM|XXX|xxx")  # nearly all texts hold none
_END = re.compile(r"[.!?…。！？؟।:][\s\"'”’»)\]*_`~]*\Z|[^\w\s,;(\[{-]\W*\Z")
_OPEN = re.compile(r"[,;(\[-]\s*\Z")
_NO_SENTENCE = re.compile(r"\s*(?:[-*+•#>|]|\d+[.)])")
_WORD = re.compile(r"\w+")
# Words that end no English sentence, not even one without a full stop.
_NEVER_LAST = frozenset(
    "a an the and or but nor because although whereas if unless of from than into your my our their its every".split()  # noqa: SIM905
)

GREETING_WORDS = 4  # "Good morning!" may be answered by the same
ECHO_WORDS = 12  # a prompt this long that is within the completion is repeated, not mentioned
ECHO_SHARE = 0.95  # of the runs of five words of prompt and completion together
_RUN = 5
ENOUGH = 20  # completions from which one can say how they usually end
USUAL = 0.9  # share of completions with end punctuation from which one without may be cut off
_SENTENCE_WORDS = 6  # a last line with fewer words is a signature or a heading
_FREQUENT = 3  # times that a word has to occur for its beginning to be a piece of it


def is_refusal(text: str) -> bool:
    """Whether a model's refusal begins the text or stands in it ("As an AI language model, I ...")."""
    plain = text.replace("’", "'").lower()
    return _REFUSAL.match(plain) is not None or ("as a" in plain and _AS_AN_AI.search(plain) is not None)


def placeholders(text: str) -> list[str]:
    """What somebody should have filled in, in order; code between backticks is not searched."""
    found: list[str] = []
    if not _HINT.search(text):
        return found

    def collect(part: str) -> str:
        found.extend(match[0].strip() for match in _PLACEHOLDER.finditer(part))
        return part

    outside_code(collect, text)
    return found


def is_echo(prompt: str, completion: str) -> bool:
    """Whether the completion is the prompt, but for case, punctuation and a few words, or holds a long one whole. A
    question that is taken up in the answer ("Nauru is the smallest country ...") is no echo."""
    if len(completion) < len(prompt) / 2:
        return False
    asked, answered = _WORD.findall(prompt.casefold()), _WORD.findall(completion.casefold())
    if asked == answered:
        return len(asked) >= GREETING_WORDS
    if len(asked) < ECHO_WORDS:
        return False
    if f" {' '.join(asked)} " in f" {' '.join(answered)} ":
        return True
    runs, repeated = _runs(asked), _runs(answered)
    return len(runs & repeated) >= ECHO_SHARE * len(runs | repeated)


def cut_off(completions: Sequence[str]) -> list[bool]:
    """For each completion whether it ends within a sentence: without end punctuation, which most others have, and with
    a comma, a word that ends no sentence ("the"), or a piece of a word that others have whole. A full stop alone may
    be missing."""
    ended = [_END.search(text) is not None for text in completions]
    cut = [False] * len(completions)
    if len(completions) < ENOUGH or sum(ended) < USUAL * len(completions):
        return cut
    candidates = {at: words for at, done in enumerate(ended) if not done and (words := _last_words(completions[at]))}
    known = Counter(word for text in completions for word in _WORD.findall(text.lower())) if candidates else Counter()
    pieces = _pieces({words[-1] for words in candidates.values()}, known)
    for at, words in candidates.items():
        last = words[-1]
        cut[at] = last in _NEVER_LAST or last in pieces or _OPEN.search(completions[at]) is not None
    return cut


def _last_words(text: str) -> list[str]:
    """The words of the last line where that is a sentence; [] for a signature, a list item, an address, a number."""
    last = text.rstrip().rpartition("\n")[2]
    words = _WORD.findall(last.lower())
    if len(words) < _SENTENCE_WORDS or _NO_SENTENCE.match(last) or words[-1][-1].isdigit():
        return []
    return [] if any(mark in last.split()[-1] for mark in "/@<`") else words


def _pieces(words: Collection[str], known: Mapping[str, int]) -> set[str]:
    """Those of `words`, each the last of a text, that occur nowhere else and with which a frequent word begins."""
    rare = {word for word in words if len(word) > 1 and known[word] == 1}
    longest = max(map(len, rare), default=0)
    frequent = (word for word, times in known.items() if times >= _FREQUENT)
    return {word[:size] for word in frequent for size in range(2, min(len(word), longest + 1)) if word[:size] in rare}


def _runs(words: Sequence[str]) -> set[tuple[str, ...]]:
    return {tuple(words[at : at + _RUN]) for at in range(len(words) - _RUN + 1)}
