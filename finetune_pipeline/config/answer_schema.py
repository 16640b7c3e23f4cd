"""The JSON Schema of an answer: its references have to resolve within it; nothing is downloaded.

unresolved({"properties": {"intent": {"$ref": "https://example.com/intent.json"}}})
# ["https://example.com/intent.json"]
validator_of({"required": ["intent"]}).iter_errors({})       # ValidationError("'intent' is a required property")
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_REFERENCES = ("$ref", "$dynamicRef")


def validator_of(schema: Mapping[str, Any]) -> Any:
    """A validator (draft 2020-12) that resolves references to this schema and to the JSON Schema drafts only."""
    from jsonschema import Draft202012Validator
    from jsonschema_specifications import REGISTRY

    return Draft202012Validator(schema, registry=REGISTRY)


def unresolved(schema: Mapping[str, Any]) -> list[str]:
    """The references that `validator_of` cannot resolve to a schema, each once, in alphabetical order."""
    from jsonschema_specifications import REGISTRY
    from referencing.jsonschema import DRAFT202012

    root = DRAFT202012.create_resource(schema)
    waiting = [(root, REGISTRY.resolver_with_root(root))]
    seen: set[int] = set()
    broken: set[str] = set()
    while waiting:
        part, resolver = waiting.pop()
        if id(part.contents) in seen:
            continue
        seen.add(id(part.contents))
        waiting += [(inner, resolver.in_subresource(inner)) for inner in part.subresources()]
        for reference in _references(part.contents):
            target = _target(reference, resolver)
            if target is None:
                broken.add(reference)
            else:  # it may be at a key that is not a keyword: {"components": {"intent": {...}}}
                waiting.append((DRAFT202012.create_resource(target.contents), target.resolver))
    return sorted(broken)


def _references(contents: Any) -> list[str]:
    return [contents[key] for key in _REFERENCES if key in contents] if isinstance(contents, Mapping) else []


def _target(reference: str, resolver: Any) -> Any:
    """The resolved reference; None if there is no schema there."""
    from referencing.exceptions import Unresolvable

    try:
        found = resolver.lookup(reference)
    except (Unresolvable, ValueError, TypeError):  # the latter two for "#/required/x", and for an invalid URI
        return None
    return found if isinstance(found.contents, Mapping | bool) else None
