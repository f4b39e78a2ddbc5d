"""Renders a conversation whose last message the model goes on with.

Pure functions of strings and a rendering, run on worker threads. Knows neither Jinja nor token ids.

Where the message's text ends in the prompt is not searched for: a text such as `<` or `end` is in the
template's own tokens too. Instead a character that is nowhere in the input (the fence) is put before and
after the text, and the prompt ends at the second one. The fences also keep a template from trimming the text.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from vinfer.text.control_tokens import ControlTokens, RenderedPrompt
from vinfer.text.reasoning import OPENING


def own_texts(message: dict[str, Any]) -> list[str]:
    """Return the texts of a message's parts, or its one text."""
    content = message.get("content")
    if content is None or isinstance(content, str):
        return [content or ""]
    return [part["text"] for part in content if part["type"] == "text"] or [""]


def fenced(message: dict[str, Any], fence: str) -> dict[str, Any]:
    """Return a copy of a message with fences around its text."""
    content = message.get("content")
    if content is None or isinstance(content, str):
        return {**message, "content": f"{fence}{content or ''}{fence}"}
    before, after = ({"type": "text", "text": fence} for _ in range(2))
    parts = [dict(part) for part in content]
    if not parts or parts[0]["type"] != "text":
        parts.insert(0, before)
    else:
        parts[0]["text"] = fence + parts[0]["text"]
    if parts[-1]["type"] != "text":
        parts.append(after)
    else:
        parts[-1]["text"] += fence
    return {**message, "content": parts}


def cut_at_fence(
    rendered: RenderedPrompt, message: dict[str, Any], fence: str, control_tokens: ControlTokens
) -> RenderedPrompt | None:
    """Return the prompt up to the second fence, without fences.

    Returns:
        None if the template does not show the text once and unchanged.
    """
    before, *rest = rendered.text.split(fence)
    texts = own_texts(message)
    # Some templates put nothing between parts, others a newline.
    if len(rest) != 2 or rest[0] not in ("".join(texts), "\n".join(texts)):
        return None
    spans = tuple(span for span in rendered.control_spans if span[1] <= len(before))
    return _prompt(before + rest[0], spans, control_tokens)


def as_begun_answer(
    head: RenderedPrompt, message: dict[str, Any], control_tokens: ControlTokens
) -> RenderedPrompt:
    """Return a prompt for a new answer, followed by the text that the answer begins with.

    For templates that rewrite the text of earlier answers, such as those that move or drop their reasoning.
    """
    text = "\n".join(own_texts(message))
    before = head.text
    if text.lstrip().startswith(OPENING) and before.rstrip().endswith(OPENING):
        before = before.rstrip().removesuffix(OPENING)
    spans = tuple(span for span in head.control_spans if span[1] <= len(before))
    return _prompt(before + text, spans, control_tokens)


def _prompt(text: str, spans: tuple[tuple[int, int], ...], control_tokens: ControlTokens) -> RenderedPrompt:
    prompt = RenderedPrompt(text, spans)
    return dataclasses.replace(prompt, has_user_specials=control_tokens.spans(text) != spans)
