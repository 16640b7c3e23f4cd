"""Which uses (research, internal, commercial) the license of a base model allows: a table and a lookup.

    problem("cc-by-nc-4.0", "commercial", approval=None)   # "the license cc-by-nc-4.0 does not allow commercial use …"
    problem("apache-2.0", "commercial", approval=None)     # None

What it is not: legal advice. Where a license has conditions (a notice, a name, a use policy, a user limit), a person
has to decide; their name and reason go into `base.license_approval` and from there into the model card.
"""

from __future__ import annotations

from dataclasses import dataclass

RESEARCH = frozenset({"research"})
INSIDE = frozenset({"research", "internal"})
ANY = frozenset({"research", "internal", "commercial"})


@dataclass(frozen=True, slots=True)
class Terms:
    """`uses` are allowed without approval; `reason` explains why the others are not (or why all are)."""

    uses: frozenset[str]
    reason: str


PERMISSIVE = "permissive: any use, with the license's notice"
SHARE_ALIKE = "any use with attribution; what is derived from it must be shared under the same license"
NON_COMMERCIAL = "it forbids commercial use; work inside a company may count as commercial"
COMMUNITY = "commercial use requires a notice, a naming rule, a use policy and a limit of users"

TERMS: dict[str, Terms] = {
    **{name: Terms(ANY, PERMISSIVE) for name in ("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "isc")},
    **{name: Terms(ANY, "public domain") for name in ("cc0-1.0", "unlicense")},
    "cc-by-4.0": Terms(ANY, "any use, with attribution"),
    "cc-by-sa-4.0": Terms(INSIDE, SHARE_ALIKE),
    **{name: Terms(RESEARCH, NON_COMMERCIAL) for name in ("cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0")},
    **{name: Terms(INSIDE, COMMUNITY) for name in ("llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4")},
    "gemma": Terms(INSIDE, "commercial use requires Google's use policy, which has to be passed on to users"),
    **{
        name: Terms(INSIDE, "its use restrictions have to be passed on to users") for name in ("openrail", "openrail++")
    },
    **{name: Terms(RESEARCH, "research only, without a contract") for name in ("qwen-research", "mrl", "mnpl")},
}


HINT = "choose another base model, or set `base.license_approval` to who allowed this use, and why"


def problem(license: str, use: str, approval: str | None) -> str | None:
    """Why `license` does not allow `use` without approval, or None. With an `approval`, every use is allowed."""
    if approval and approval.strip():
        return None
    terms = TERMS.get(license.strip().lower())
    if terms is None:
        return f"{license!r} is not a known license, so it may not allow {use} use"
    if use not in terms.uses:
        return f"the license {license} does not allow {use} use without approval: {terms.reason}"
    return None
