"""Apply the base model's chat template: the only place that does, so training, evaluation and serving cannot differ.

    render(tokenizer, [{"role": "user", "content": "where is my parcel?"}])
    # "<|im_start|>user\\nwhere is my parcel?<|im_end|>\\n<|im_start|>assistant\\n"

The rendered text already holds all special tokens: tokenize it with `add_special_tokens=False`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from finetune_pipeline.errors import ModelError

# Variables with fixed values: a template that prints today's date, or has a "thinking" switch, would otherwise render
# one text in training and another one in serving.
TEMPLATE_SETTINGS: dict[str, Any] = {"date_string": "1 January 2026", "enable_thinking": False}
# `strftime_now` is a function of transformers' template environment, so only the template itself can replace it.
FIXED_DATE_MACRO = "{%- macro strftime_now(format) -%}1 January 2026{%- endmacro -%}"


def render(tokenizer: Any, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
    """The text of `messages` by the tokenizer's chat template, with fixed settings.

    A special token that somebody typed into a message ("<|im_end|>") gets a blank after its first character, so that it
    does not end the turn. ModelError when the template rejects the messages (some support no system role).
    """
    from jinja2 import TemplateError

    template: str = tokenizer.get_chat_template()
    try:
        text: str = tokenizer.apply_chat_template(
            [{**message, "content": escape_special_tokens(tokenizer, message["content"])} for message in messages],
            chat_template=FIXED_DATE_MACRO + template if "strftime_now" in template else template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **TEMPLATE_SETTINGS,
        )
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ModelError(
            f"the base model's chat template rejects messages with the roles {roles}: {error}",
            "leave `prompt.system` empty (some templates support no system role), or choose another base model",
        ) from error
    return text


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
    configured = model.generation_config.eos_token_id
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
