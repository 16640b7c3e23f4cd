"""Secrets are found and masked; texts that only look like one are not."""

from __future__ import annotations

import pytest

from finetune_pipeline.quality import secrets

# Made up, and put together here, so that no scanner takes this file for a leak.
WORD = "Zq3xK9vB7nM2pL5tR8wY"
SECRETS = [
    ("AWS_KEY", "AKIA" + "QYLPMN5HHHFPZAM2"),
    ("GITHUB_TOKEN", "ghp_" + (WORD * 2)[:36]),
    ("GITLAB_TOKEN", "glpat-" + WORD),
    ("SLACK_TOKEN", "xoxb-" + "1234567890-1234567890-" + WORD + "abcd"),
    ("OPENAI_KEY", "sk-" + WORD + "T3BlbkFJ" + WORD),
    ("OPENAI_KEY", "sk-proj-" + WORD + "T3BlbkFJ" + WORD),
    ("ANTHROPIC_KEY", "sk-ant-api03-" + (WORD * 5)[:93] + "AA"),
    ("GOOGLE_KEY", "AIza" + (WORD * 2)[:35]),
    ("STRIPE_KEY", "sk_" + "live_" + WORD),
    ("HUGGING_FACE_TOKEN", "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYzAbCdEfGh"),
    ("NPM_TOKEN", "npm_" + (WORD * 2)[:36]),
    ("JWT", "eyJ" + "hbGciOiJIUzI1NiJ9.eyJ" + "zdWIiOiIxMjM0NTY3ODkwIn0." + WORD),
    ("PRIVATE_KEY", "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----"),
    ("PRIVATE_KEY", "-----BEGIN " + "PRIVATE KEY-----"),
    ("URL_PASSWORD", "postgres://app:" + "hunter2" + "@"),
]


@pytest.mark.parametrize(("kind", "secret"), SECRETS)
def test_a_secret_is_found_and_masked(kind: str, secret: str) -> None:
    text = f"please use {secret} for it" if kind != "URL_PASSWORD" else f"please use {secret}db/x for it"
    assert secrets.find(text) == [kind]
    assert secret not in secrets.mask(text) and f"<{kind}>" in secrets.mask(text)


@pytest.mark.parametrize(
    "text",
    [
        "AKIAIOSFODNN7EXAMPLE is Amazon's own example",
        "my order is AKIA, the ref HV-48213",
        "write it as https://user:password@host/x or postgres://app:${PASS}@db",
        "see https://example.org:8080/a and mail me@example.org",
        "sk-learn is a library, risk-free and desk-based",
        "eyJ is how a token begins",
        "a private key is kept by yourself: BEGIN PRIVATE KEY",
        "hf_hub_download(repo) and npm_config_cache",
    ],
)
def test_what_only_looks_like_a_secret(text: str) -> None:
    assert secrets.find(text) == []
    assert secrets.mask(text) == text
