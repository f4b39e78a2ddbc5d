"""Logprobs in OpenAI's two forms: the list of entries of chat, and the parallel lists of completions.

Pure functions on the event loop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from vinfer.engine.request import TokenLogprobs
from vinfer.server.answers.bodies import ChatLogprobs, ParallelLogprobs, TopLogprob
from vinfer.server.generate.echo import Echo
from vinfer.server.generate.generation import GeneratedToken
from vinfer.text.token_bytes import token_bytes
from vinfer.text.tokenizer import Tokenizer

# JSON has no infinities; OpenAI uses this value for "as good as impossible".
LEAST_LOGPROB = -9999.0


def chat_logprobs(tokens: Sequence[GeneratedToken], tokenizer: Tokenizer, top_logprobs: int) -> ChatLogprobs:
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

    `top_logprobs` includes the token itself, as OpenAI's does, so it may have one entry more than requested.

    Args:
        text_offset: where the completion begins in the choice's text.
    """

    def __init__(self, tokenizer: Tokenizer, top_logprobs: int, text_offset: int = 0) -> None:
        self._tokenizer = tokenizer
        self._top_logprobs = top_logprobs
        self._text_offset = text_offset

    def add_prompt(self, written: ParallelLogprobs, echo: Echo, logprobs: Sequence[TokenLogprobs]) -> None:
        """Append an echoed prompt.

        Args:
            logprobs: those of every token but the first, whose logprob is null as nothing precedes it.
        """
        for token_id, its_logprobs, offset in zip(
            echo.token_ids, (None, *logprobs), echo.offsets, strict=True
        ):
            self._append(written, token_id, its_logprobs, offset)

    def add(self, written: ParallelLogprobs, tokens: Sequence[GeneratedToken]) -> None:
        """Append the next tokens of the completion."""
        for token in tokens:
            self._append(written, token.id, token.logprobs, self._text_offset)
            self._text_offset += len(token_bytes(self._tokenizer, token.id).decode("utf-8", "ignore"))

    def _append(
        self, written: ParallelLogprobs, token_id: int, logprobs: TokenLogprobs | None, offset: int
    ) -> None:
        label = _label(token_bytes(self._tokenizer, token_id))
        logprob = top = None
        if logprobs is not None:
            logprob = _finite(logprobs.logprob)
            # The token itself first and the best one last: if two are spelled alike, the likelier one stays.
            alternatives = {
                _label(token_bytes(self._tokenizer, other)): _finite(alternative)
                for other, alternative in reversed(_top(logprobs, self._top_logprobs))
            }
            top = {label: logprob, **alternatives} if self._top_logprobs else None
        written["tokens"].append(label)
        written["token_logprobs"].append(logprob)
        written["top_logprobs"].append(top)
        written["text_offset"].append(offset)


def _entry(token_id: int, logprob: float, tokenizer: Tokenizer) -> TopLogprob:
    raw = token_bytes(tokenizer, token_id)
    return {"token": _label(raw), "logprob": _finite(logprob), "bytes": list(raw)}


def _top(logprobs: TokenLogprobs, num: int) -> list[tuple[int, float]]:
    return list(zip(logprobs.top_ids, logprobs.top_logprobs, strict=True))[:num]


def _label(raw: bytes) -> str:
    """Return a token as text; part of a character is written as OpenAI does: `bytes:\\xe2\\x82`."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LEAST_LOGPROB
