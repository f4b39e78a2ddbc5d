"""Generated tokens' logprobs in OpenAI's two forms: chat's list of entries, completions' parallel lists.

Pure functions on the event loop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from vinfer.engine.request import TokenLogprobs
from vinfer.server.generation import GeneratedToken
from vinfer.server.token_bytes import token_bytes
from vinfer.text.tokenizer import Tokenizer

# JSON has no infinities; OpenAI uses this value for "as good as impossible".
LEAST_LOGPROB = -9999.0


def chat_logprobs(
    tokens: Sequence[GeneratedToken], tokenizer: Tokenizer, top_logprobs: int
) -> dict[str, Any]:
    """Write tokens as `choices[].logprobs` of chat completions."""
    return {
        "content": [
            {
                **_entry(token.id, token.logprobs.logprob, tokenizer),
                "top_logprobs": [
                    _entry(token_id, logprob, tokenizer)
                    for token_id, logprob in _top(token.logprobs, top_logprobs)
                ],
            }
            for token in tokens
        ],
        "refusal": None,
    }


class CompletionLogprobs:
    """Writes the tokens of one choice, in pieces, as `choices[].logprobs` of plain completions.

    `top_logprobs` holds the generated token too, as OpenAI's does, so up to one entry more than asked for.
    """

    def __init__(self, tokenizer: Tokenizer, top_logprobs: int) -> None:
        self._tokenizer = tokenizer
        self._top_logprobs = top_logprobs
        self._text_offset = 0

    def write(self, tokens: Sequence[GeneratedToken]) -> dict[str, list[Any]]:
        """Write the next tokens."""
        written: dict[str, list[Any]] = {
            key: [] for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        }
        for token in tokens:
            raw = token_bytes(self._tokenizer, token.id)
            logprob = _finite(token.logprobs.logprob)
            # The best last and the token itself after it: where two spell alike, the likelier one stays.
            top = {
                _label(token_bytes(self._tokenizer, token_id)): _finite(alternative)
                for token_id, alternative in reversed(_top(token.logprobs, self._top_logprobs))
            }
            written["tokens"].append(_label(raw))
            written["token_logprobs"].append(logprob)
            written["top_logprobs"].append({_label(raw): logprob, **top} if self._top_logprobs else None)
            written["text_offset"].append(self._text_offset)
            self._text_offset += len(raw.decode("utf-8", "ignore"))
        return written


def _entry(token_id: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    raw = token_bytes(tokenizer, token_id)
    return {"token": _label(raw), "logprob": _finite(logprob), "bytes": list(raw)}


def _top(logprobs: TokenLogprobs, num: int) -> list[tuple[int, float]]:
    return list(zip(logprobs.top_ids, logprobs.top_logprobs, strict=True))[:num]


def _label(raw: bytes) -> str:
    """Write a token as text; part of a character as OpenAI does: `bytes:\\xe2\\x82`."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LEAST_LOGPROB
