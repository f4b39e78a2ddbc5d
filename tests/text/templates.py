"""Chat templates, and messages for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from small_tokenizers import SPECIALS

from vinfer.text.chat_template import ChatTemplate
from vinfer.text.control_tokens import ControlTokens

TEMPLATES = {
    path.stem: path.read_text(encoding="utf-8")
    for path in sorted((Path(__file__).parent / "chat_templates").glob("*.jinja"))
}
"""SmolLM2's own template, some modeled on well-known models, and some with rarer parts of the language."""
SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": None}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def template(source: str, *, specials: tuple[str, ...] = SPECIALS, **options: Any) -> ChatTemplate:
    return ChatTemplate(source, SPECIAL_TOKENS, control_tokens=ControlTokens(specials), **options)
