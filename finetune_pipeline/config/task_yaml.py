"""Parse task.yaml into plain values; an error where YAML 1.1 would silently read another value.

    parse(b"name: tickets\nname: parcels\n", "data/tickets/task.yaml")
    DeclarationError: data/tickets/task.yaml is not valid YAML, line 2: `name` occurs twice (first in line 1)

PyYAML keeps the last of two equal keys without a warning, reads 010 as 8, 12:30 as 750 and [yes, no] as [true, false],
constructs objects from tags, and expands aliases to billions of values ("billion laughs"). Every other exception of
PyYAML (ValueError, RecursionError, ...) becomes the same DeclarationError: one invalid file must not stop commands that
read all tasks.
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
MAX_VALUES = 50_000  # an alias counts as the values that it expands to
DEFAULT_HINT = "check the line's indentation and quotes"
VALUE_HINT = "correct the value, or put it in quotes if it is text"
OCTAL_HINT = "write the number without the 0 before it, or put it in quotes if it is text"
BASE_60_HINT = "put it in quotes; a number is written without `:`"
CHARACTER_HINT = "write the character itself instead of the escape"
QUOTE_HINT = "put it in quotes"
TWICE_HINT = "remove one of the two lines"
FILE_HINT = "move the values into a file that `sources` names"

_STR, _MERGE, _INT, _FLOAT, _BOOL, _DATE = (
    f"tag:yaml.org,2002:{kind}" for kind in ("str", "merge", "int", "float", "bool", "timestamp")
)
_OCTAL = re.compile("[-+]?0[0-7_]")


def parse(raw: bytes, where: str) -> Any:
    """The values of a declaration. DeclarationError names the file (`where`) and the line."""
    text = _text(raw, where)
    try:
        return _load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line if mark else 0
        shown = "".join(text.splitlines()[line : line + 1]).strip()[:80]
        problem = f"{error.problem or error}" + (f" in `{shown}`" if shown else "")
        raise _error(where, line, problem, error.note or DEFAULT_HINT) from None
    except ReaderError as error:
        problem = f"it contains the control character U+{error.character:04X}"
        raise _error(where, text.count("\n", 0, error.position), problem, "remove the character") from None


def _error(where: str, line: int, problem: str, hint: str) -> DeclarationError:
    """`line` counts from 0."""
    return DeclarationError(f"{where} is not valid YAML, line {line + 1}: {problem}", hint)


def _text(raw: bytes, where: str) -> str:
    """The text of the file, which is UTF-8 and not too long."""
    if len(raw) > MAX_BYTES:
        raise DeclarationError(
            f"{where} is larger than {MAX_BYTES // 1024} kB", "put examples into files and name them in `sources`"
        )
    hint = "save it in the encoding UTF-8"
    if b"\0" in raw:
        raise _error(where, raw.count(b"\n", 0, raw.index(b"\0")), "it is not UTF-8 (is it UTF-16?)", hint)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        problem = f"it is not UTF-8 ({error.reason})"
        raise _error(where, raw.count(b"\n", 0, error.start), problem, hint) from None


def _load(text: str) -> Any:
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    except (*DAMAGE, ArithmeticError) as error:  # not handled by PyYAML: a version of thousands of digits
        problem = "it is nested too deeply" if isinstance(error, RecursionError) else f"{error}"
        raise ScannerError(None, None, problem, loader.get_mark()) from None
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with limits, and with errors instead of silent choices."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._values = 0
        self._sizes: dict[int, int] = {}  # node -> the number of values in it

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        before = self._values
        self._require(self._depth < MAX_DEPTH, event, f"it is nested more than {MAX_DEPTH} levels deep", FILE_HINT)
        tag = getattr(event, "tag", None)
        self._require(tag is None, event, f"the tag {tag} is not supported: write the plain value")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        alias = isinstance(event, yaml.AliasEvent)
        self._require(
            not alias or id(node) in self._sizes, event, f"*{event.anchor} is part of the value that it refers to"
        )
        self._values += self._sizes[id(node)] if alias else 1
        self._require(self._values <= MAX_VALUES, event, f"it has more than {MAX_VALUES} values", FILE_HINT)
        self._sizes[id(node)] = self._values - before
        return node

    def scan_flow_scalar_non_spaces(self, double: Any, start_mark: Any) -> list[str]:
        """The next part of a quoted text. Two escapes that are a surrogate pair, as in JSON, become one character."""
        try:
            part = "".join(super().scan_flow_scalar_non_spaces(double, start_mark))
            return [part.encode("utf-16-le", "surrogatepass").decode("utf-16-le")]
        except UnicodeDecodeError as error:
            half = int.from_bytes(error.object[error.start : error.start + 2], "little")
            problem = f"the escape \\u{half:04x} is one half of a surrogate pair, which is not a character"
        except (ValueError, OverflowError):
            problem = f"the escape \\U{self.prefix(8)} is not a character: the last one is \\U0010ffff"
        raise ScannerError(None, None, problem, self.get_mark(), CHARACTER_HINT)

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        shown = f"`{node.value[:40]}`"
        base_60 = node.tag in (_INT, _FLOAT) and ":" in node.value
        self._require(not base_60, node, f"{shown} is read as a number in base 60", BASE_60_HINT)
        octal = node.tag == _INT and _OCTAL.match(node.value)
        self._require(not octal, node, f"{shown} is read as an octal number", OCTAL_HINT)
        return node

    def compose_sequence_node(self, anchor: Any) -> yaml.SequenceNode:
        """A list of labels, columns or values of a schema, in which `yes` and 2026-01-05 are meant as text."""
        node = super().compose_sequence_node(anchor)
        for item in node.value:
            word = item.tag == _BOOL and item.value.lower() not in ("true", "false")
            problem = f"`{item.value}` in a list is read as {'true or false' if word else 'a date'}"
            self._require(not word and item.tag != _DATE, item, problem, QUOTE_HINT)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys: dict[tuple[str, str], yaml.ScalarNode] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            first = keys.setdefault((key.tag, key.value), key)
            problem = f"`{key.value}` occurs twice (first in line {first.start_mark.line + 1})"
            self._require(first is key, key, problem, TWICE_HINT)
            self._require(key.tag in (_STR, _MERGE), key, f"the key `{key.value}` is not read as text", QUOTE_HINT)
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
            finite = not isinstance(value, int | float) or math.isfinite(value)
        except (ValueError, ArithmeticError) as error:  # an impossible date, a number of thousands of digits
            raise ConstructorError(None, None, str(error), node.start_mark, VALUE_HINT) from None
        if not finite:
            raise ConstructorError(None, None, f"{node.value} is not a finite number", node.start_mark, VALUE_HINT)
        return value

    def _require(self, holds: bool, at: Any, problem: str, hint: str = DEFAULT_HINT) -> None:
        if not holds:
            raise ComposerError(None, None, problem, at.start_mark, hint)
