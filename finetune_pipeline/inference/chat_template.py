"""Apply the base model's chat template: the only place that does, so training, evaluation and serving cannot differ.

    render(tokenizer, [{"role": "user", "content": "where is my parcel?"}])
    # "<|im_start|>user\\nwhere is my parcel?<|im_end|>\\n<|im_start|>assistant\\n"

The rendered text already holds all special tokens: tokenize it with `add_special_tokens=False`.

Some templates have no system role (Gemma 2), others lose it once the conversation is answered (Mistral 0.3). Each
template is tried once; where it does not show a system message, its text is put before the next user message, separated
by an empty line, as the template of Gemma 3 does.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from finetune_pipeline.errors import ModelError, reading

Messages = Sequence[Mapping[str, str]]
# Variables with fixed values: a template that prints today's date, or has a "thinking" switch, would otherwise render
# one text in training and another one in serving.
TEMPLATE_SETTINGS: dict[str, Any] = {"date_string": "1 January 2026", "enable_thinking": False}
# `strftime_now` is a function of transformers' template environment, so only the template itself can replace it.
FIXED_DATE_MACRO = "{%- macro strftime_now(format) -%}1 January 2026{%- endmacro -%}"
PROBE = "system message 8311"  # a text that no template contains


def render(tokenizer: Any, messages: Messages, add_generation_prompt: bool = True) -> str:
    """The text of `messages` by the tokenizer's chat template, with fixed settings.

    A special token that somebody typed into a message ("<|im_end|>") gets a blank after its first character, so that it
    does not end the turn. ModelError when there is no template, or it rejects the order of roles.
    """
    from jinja2 import TemplateError, TemplateSyntaxError

    template = _template(tokenizer)
    escaped = [{**message, "content": escape_special_tokens(tokenizer, message["content"])} for message in messages]
    if any(message["role"] == "system" for message in escaped) and not _shows_system(tokenizer, template):
        escaped = join_system(escaped)
    try:
        return _apply(tokenizer, template, escaped, add_generation_prompt)
    except TemplateSyntaxError as error:
        raise ModelError(
            f"the base model's chat template is damaged: line {error.lineno}: {error.message}",
            "get the model's files again, or correct its chat_template.jinja",
        ) from error
    except TemplateError as error:
        roles = [message["role"] for message in messages]
        raise ModelError(
            f"the base model's chat template rejects messages with the roles {', '.join(roles)}: "
            f"{_order_problem(roles) or error}",
            "let the roles alternate (user, assistant, user, …), the first one after a system message being user; or "
            "choose another base model",
        ) from error


def join_system(messages: Messages) -> list[dict[str, str]]:
    """The messages without system role: its text is put before that of the next user message."""
    joined: list[dict[str, str]] = []
    waiting: list[str] = []
    for message in messages:
        if message["role"] == "system":
            waiting += [message["content"]] if message["content"] else []
        elif message["role"] == "user" and waiting:
            joined.append({**message, "content": "\n\n".join([*waiting, message["content"]])})
            waiting = []
        else:
            joined.append(dict(message))
    return [*joined, {"role": "user", "content": "\n\n".join(waiting)}] if waiting else joined


def _apply(tokenizer: Any, template: str, messages: Messages, add_generation_prompt: bool) -> str:
    text: str = tokenizer.apply_chat_template(
        messages,
        chat_template=FIXED_DATE_MACRO + template if "strftime_now" in template else template,
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
        **TEMPLATE_SETTINGS,
    )
    return text


def _template(tokenizer: Any) -> str:
    require_template(tokenizer, "the base model's tokenizer")
    try:
        template: str = tokenizer.get_chat_template()
    except ValueError as error:  # several templates with names, and none is the default
        raise ModelError(f"the base model's chat template cannot be chosen: {error}", "name one `default`") from error
    return template


@functools.lru_cache(maxsize=8)
def _shows_system(tokenizer: Any, template: str) -> bool:
    """Whether the template renders a system message, before and after the answer."""
    from jinja2 import TemplateError

    prompt = [{"role": "system", "content": PROBE}, {"role": "user", "content": "a"}]
    try:
        asked = _apply(tokenizer, template, prompt, True)
        answered = _apply(tokenizer, template, [*prompt, {"role": "assistant", "content": "b"}], False)
    except TemplateError:
        return False
    return PROBE in asked and PROBE in answered


def _order_problem(roles: Sequence[str]) -> str:
    """What is wrong with the order of roles, for a template that requires alternating ones; "" when nothing is."""
    spoken = [(number, role) for number, role in enumerate(roles, 1) if role != "system"]
    if spoken and spoken[0][1] != "user":
        return f"message {spoken[0][0]} has the role {spoken[0][1]}, and a conversation begins with user"
    for (before, role), (after, same) in pairwise(spoken):
        if role == same:
            return f"messages {before} and {after} follow each other and both have the role {role}"
    return ""


def require_template(tokenizer: Any, source: str) -> None:
    """ModelError when the tokenizer from `source` has no chat template."""
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(
            f"{source} has no chat template, so the format of its prompts is unknown",
            "choose an instruct model, or put a chat_template.jinja into the folder",
        )


def end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Ids of the end-of-turn tokens: the tokenizer's `eos_token` and those of the model's generation config. ModelError
    when there is none."""
    return _end_ids(model.generation_config.eos_token_id, tokenizer)


def end_ids_of(folder: Path, tokenizer: Any) -> frozenset[int]:
    """The same without loading the model in `folder`: a model without generation_config.json takes the ids from its
    config.json."""
    for name in ("generation_config.json", "config.json"):
        if (folder / name).exists():
            with reading(folder / name, "get the model's files again"):
                return _end_ids(json.loads((folder / name).read_text("utf-8")).get("eos_token_id"), tokenizer)
    return _end_ids(None, tokenizer)


def _end_ids(configured: Any, tokenizer: Any) -> frozenset[int]:
    ids = {tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])} - {None}
    if not ids:
        raise ModelError(
            "neither tokenizer_config.json nor generation_config.json names an end-of-turn token", "add `eos_token`"
        )
    return frozenset(int(i) for i in ids)


def escape_special_tokens(tokenizer: Any, content: str) -> str:
    """`content` with a blank inside every special token: "<|im_end|>" becomes "< |im_end|>"."""
    for token in _special_tokens(tokenizer):
        if token in content:
            content = content.replace(token, f"{token[0]} {token[1:]}")
    return content


@functools.lru_cache(maxsize=8)
def _special_tokens(tokenizer: Any) -> tuple[str, ...]:
    return tuple(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
