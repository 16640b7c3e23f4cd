"""The text of a task.yaml as plain values, refused where YAML would read something else than what it seems to say.

    parse(b"name: tickets\nname: parcels\n", "data/tickets/task.yaml")
    DeclarationError: data/tickets/task.yaml is no valid YAML, line 2: `name` stands twice (first in line 1)

PyYAML keeps the last of two equal keys without a word, makes objects of tags, and takes aliases that stand for billions
of values (a "billion laughs"). What it is not: the meaning of the keys (config.py).
"""

from __future__ import annotations

import math
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError
from yaml.reader import ReaderError

from finetune_pipeline.errors import DeclarationError

MAX_BYTES = 256 * 1024
MAX_DEPTH = 100
MAX_VALUES = 50_000  # with every alias counted as the values that it stands for
CURE = "check the line's indentation and quotes"


def parse(raw: bytes, where: str) -> Any:
    """The values of a declaration. DeclarationError names `where` (the file), the line, and what to do."""
    text = _text(raw, where)
    try:
        return _load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line if mark else 0
        shown = "".join(text.splitlines()[line : line + 1]).strip()[:80]
        raise _error(where, line, f"{error.problem or error}" + (f" in `{shown}`" if shown else ""), CURE) from None
    except ReaderError as error:
        said = f"it holds the control character U+{error.character:04X}"
        raise _error(where, text.count("\n", 0, error.position), said, "remove the character") from None


def _error(where: str, line: int, said: str, cure: str) -> DeclarationError:
    """`line` counts from 0."""
    return DeclarationError(f"{where} is no valid YAML, line {line + 1}: {said}", cure)


def _text(raw: bytes, where: str) -> str:
    """The text of the file, which is UTF-8 and not too long."""
    if len(raw) > MAX_BYTES:
        raise DeclarationError(
            f"{where} is larger than {MAX_BYTES // 1024} kB", "examples belong into files that `sources` names"
        )
    cure = "save it in the encoding UTF-8"
    if b"\0" in raw:
        raise _error(where, raw.count(b"\n", 0, raw.index(b"\0")), "it is no UTF-8 (is it UTF-16?)", cure)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        said = f"it is no UTF-8 ({error.reason})"
        raise _error(where, raw.count(b"\n", 0, error.start), said, cure) from None


def _load(text: str) -> Any:
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with bounds, and errors where it would choose silently."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._values = 0
        self._sizes: dict[int, int] = {}  # node -> the number of values in it

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        before = self._values
        self._require(self._depth < MAX_DEPTH, event, f"it is nested more than {MAX_DEPTH} levels deep")
        tag = getattr(event, "tag", None)
        self._require(tag is None, event, f"the tag {tag} is not used here: write the plain value")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        alias = isinstance(event, yaml.AliasEvent)
        self._require(not alias or id(node) in self._sizes, event, f"*{event.anchor} stands in what it refers to")
        self._values += self._sizes[id(node)] if alias else 1
        self._require(self._values <= MAX_VALUES, event, f"it has more than {MAX_VALUES} values")
        self._sizes[id(node)] = self._values - before
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys: dict[tuple[str, str], yaml.ScalarNode] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            first = keys.setdefault((key.tag, key.value), key)
            said = f"`{key.value}` stands twice (first in line {first.start_mark.line + 1})"
            self._require(first is key, key, said)
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except ValueError as error:  # a date of no calendar, a number of thousands of digits
            raise ConstructorError(None, None, str(error), node.start_mark) from None
        if isinstance(value, float) and not math.isfinite(value):
            raise ConstructorError(None, None, f"{node.value} is no finite number", node.start_mark)
        return value

    def _require(self, holds: bool, at: Any, said: str) -> None:
        if not holds:
            raise ComposerError(None, None, said, at.start_mark)
