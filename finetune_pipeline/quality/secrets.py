"""Finds and masks keys, tokens and passwords in a text: a few unmistakable formats, no guess by entropy.

    find("use AKIA… for the bucket")     # ["AWS_KEY"]
    mask("postgres://app:hunter2@db/x")  # "<URL_PASSWORD>db/x"

The patterns are those of gitleaks (https://github.com/gitleaks/gitleaks, config/gitleaks.toml, MIT) and detect-secrets
(https://github.com/Yelp/detect-secrets, plugins/, Apache-2.0), as regular expressions of Python. Both tools find more,
by the entropy of strings and by words such as "password" beside them: in prose that raises false alarms.
"""

from __future__ import annotations

import re

_PATTERNS = {
    "PRIVATE_KEY": r"-----BEGIN (?:[A-Z]{2,10} ){0,2}PRIVATE KEY(?: BLOCK)?-----"
    r"(?s:.{0,8000}?-----END [A-Z ]{1,40}-----)?",
    "AWS_KEY": r"(?<![A-Za-z0-9])(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}(?![A-Za-z0-9])(?<!EXAMPLE)",
    "GITHUB_TOKEN": r"\b(?:gh[pousr]_[0-9A-Za-z]{36}|github_pat_\w{82})\b",
    "GITLAB_TOKEN": r"\bglpat-[\w-]{20}(?![\w-])",
    "SLACK_TOKEN": r"\bxox[abposr]-(?:\d{10,13}-){1,3}[A-Za-z0-9-]{20,}",
    "OPENAI_KEY": r"\bsk-(?:(?:proj|svcacct|admin)-)?[\w-]{20,100}T3BlbkFJ[\w-]{20,100}",
    "ANTHROPIC_KEY": r"\bsk-ant-(?:api|admin)\d\d-[\w-]{80,120}",
    "GOOGLE_KEY": r"\bAIza[\w-]{35}(?![\w-])",
    "STRIPE_KEY": r"\b(?:sk|rk)_(?:test|live|prod)_[A-Za-z0-9]{16,99}\b",
    "HUGGING_FACE_TOKEN": r"\bhf_[A-Za-z]{34}\b",
    "NPM_TOKEN": r"\bnpm_[A-Za-z0-9]{36}\b",
    "JWT": r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}",
    # A password that is a name for one ("user:password@", "<pass>", "${PASS}", "***") is no secret.
    "URL_PASSWORD": r"\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@<>\"']{1,80}:"
    r"(?!(?i:pass(?:word|wd)?|pwd|secret|token|x+)@)[^\s/:@<>{}$*\[\]\"']{3,80}@(?=[\w\[])",
}
_SECRET = re.compile("|".join(f"(?P<{kind}>{pattern})" for kind, pattern in _PATTERNS.items()))
# Each pattern needs one of these: looked for first, since nearly all texts hold none.
_HINT = re.compile(
    r"-----BEGIN|A[KSBC][IC]A|gh[pousr]_|github_pat_|glpat-|xox[abposr]-|sk[-_]|AIza|rk_|hf_|npm_|eyJ|://"
)


def find(text: str) -> list[str]:
    """The kinds of the secrets in the text, in its order."""
    return [str(match.lastgroup) for match in _SECRET.finditer(text)] if _HINT.search(text) else []


def mask(text: str) -> str:
    """The text with each secret replaced by <KIND>."""
    return _SECRET.sub(lambda match: f"<{match.lastgroup}>", text) if _HINT.search(text) else text
