"""The text of a task.yaml as plain values, refused where YAML would read something else than what it seems to say.

    parse(b"name: tickets\nname: parcels\n", "data/tickets/task.yaml")
    DeclarationError: data/tickets/task.yaml is no valid YAML, line 2: `name` stands twice (first in line 1)

PyYAML keeps the last of two equal keys without a word, reads 010 as 8, 12:30 as 750 and the answers [yes, no] as [true,
false], makes objects of tags, and takes aliases that stand for billions of values (a "billion laughs"). Whatever else
it raises (ValueError, RecursionError, ...) becomes the same DeclarationError: one wrong file must not stop those who
read all tasks. What it is not: the meaning of the keys (config.py).
"""

from __future__ import annotations

import math
import re
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError
from yaml.reader import ReaderError
from yaml.scanner import ScannerError

from finetune_pipeline.errors import DAMAGE, DeclarationError

MAX_BYTES = 256 * 1024
MAX_DEPTH = 100
MAX_VALUES = 50_000  # with every alias counted as the values that it stands for
CURE = "check the line's indentation and quotes"
VALUE_CURE = "correct the value, or put it in quotes if it is text"
OCTAL_CURE = "write the number without the 0 before it, or put it in quotes if it is text"
BASE_60_CURE = "put it in quotes; a number is written without `:`"
CHARACTER_CURE = "write the character itself instead of the escape"
QUOTE_CURE = "put it in quotes"

_STR, _MERGE, _INT, _FLOAT, _BOOL, _DATE = (
    f"tag:yaml.org,2002:{kind}" for kind in ("str", "merge", "int", "float", "bool", "timestamp")
)
_OCTAL = re.compile("[-+]?0[0-7_]")


def parse(raw: bytes, where: str) -> Any:
    """The values of a declaration. DeclarationError names `where` (the file), the line, and what to do."""
    text = _text(raw, where)
    try:
        return _load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line if mark else 0
        shown = "".join(text.splitlines()[line : line + 1]).strip()[:80]
        said = f"{error.problem or error}" + (f" in `{shown}`" if shown else "")
        raise _error(where, line, said, error.note or CURE) from None
    except ReaderError as error:
        said = f"it holds the control character U+{error.character:04X}"
        raise _error(where, text.count("\n", 0, error.position), said, "remove the character") from None


def _error(where: str, line: int, said: str, hint: str) -> DeclarationError:
    """`line` counts from 0."""
    return DeclarationError(f"{where} is no valid YAML, line {line + 1}: {said}", hint)


def _text(raw: bytes, where: str) -> str:
    """The text of the file, which is UTF-8 and not too long."""
    if len(raw) > MAX_BYTES:
        raise DeclarationError(
            f"{where} is larger than {MAX_BYTES // 1024} kB", "examples belong into files that `sources` names"
        )
    hint = "save it in the encoding UTF-8"
    if b"\0" in raw:
        raise _error(where, raw.count(b"\n", 0, raw.index(b"\0")), "it is no UTF-8 (is it UTF-16?)", hint)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        said = f"it is no UTF-8 ({error.reason})"
        raise _error(where, raw.count(b"\n", 0, error.start), said, hint) from None


def _load(text: str) -> Any:
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    except (*DAMAGE, ArithmeticError) as error:  # what PyYAML does not expect: a version of thousands of digits
        said = "it is nested too deep" if isinstance(error, RecursionError) else f"{error}"
        raise ScannerError(None, None, said, loader.get_mark()) from None
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

    def scan_flow_scalar_non_spaces(self, double: Any, start_mark: Any) -> list[str]:
        """The next part of a text in quotes. Two escapes that are a surrogate pair, as JSON has them, are joined."""
        try:
            part = "".join(super().scan_flow_scalar_non_spaces(double, start_mark))
            return [part.encode("utf-16-le", "surrogatepass").decode("utf-16-le")]
        except UnicodeDecodeError as error:
            half = int.from_bytes(error.object[error.start : error.start + 2], "little")
            said = f"the escape \\u{half:04x} is one half of a surrogate pair, which is no character"
        except (ValueError, OverflowError):
            said = f"the escape \\U{self.prefix(8)} is no character: the last one is \\U0010ffff"
        raise ScannerError(None, None, said, self.get_mark(), CHARACTER_CURE)

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        shown = f"`{node.value[:40]}`"
        base_60 = node.tag in (_INT, _FLOAT) and ":" in node.value
        self._require(not base_60, node, f"{shown} is read as a number to the base 60", BASE_60_CURE)
        octal = node.tag == _INT and _OCTAL.match(node.value)
        self._require(not octal, node, f"{shown} is read as an octal number", OCTAL_CURE)
        return node

    def compose_sequence_node(self, anchor: Any) -> yaml.SequenceNode:
        """A list, which is one of labels, columns or values of a schema: `yes` and 2026-01-05 are meant as text."""
        node = super().compose_sequence_node(anchor)
        for item in node.value:
            word = item.tag == _BOOL and item.value.lower() not in ("true", "false")
            said = f"`{item.value}` in a list is read as {'true or false' if word else 'a date'}"
            self._require(not word and item.tag != _DATE, item, said, QUOTE_CURE)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys: dict[tuple[str, str], yaml.ScalarNode] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            first = keys.setdefault((key.tag, key.value), key)
            said = f"`{key.value}` stands twice (first in line {first.start_mark.line + 1})"
            self._require(first is key, key, said)
            self._require(key.tag in (_STR, _MERGE), key, f"the key `{key.value}` is not read as text", QUOTE_CURE)
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
            finite = not isinstance(value, int | float) or math.isfinite(value)
        except (ValueError, ArithmeticError) as error:  # a date of no calendar, a number of thousands of digits
            raise ConstructorError(None, None, str(error), node.start_mark, VALUE_CURE) from None
        if not finite:
            raise ConstructorError(None, None, f"{node.value} is no finite number", node.start_mark, VALUE_CURE)
        return value

    def _require(self, holds: bool, at: Any, said: str, hint: str = CURE) -> None:
        if not holds:
            raise ComposerError(None, None, said, at.start_mark, hint)
