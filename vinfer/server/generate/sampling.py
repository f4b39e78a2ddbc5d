"""Turns checked request fields, the model's defaults and the prompt's length into SamplingParams.

Pure functions on the event loop. It knows neither HTTP nor text.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from typing import Any

from vinfer.bundle.sampling import NUMBERS
from vinfer.engine.request import MAX_STOP_TOKEN_IDS, SamplingParams
from vinfer.errors import ContextLengthError, RequestError
from vinfer.server.fields.chat import ChatFields
from vinfer.server.fields.completions import CompletionFields
from vinfer.server.fields.sampling import SamplingFields
from vinfer.server.model_table import ServedModel

# OpenAI's default for `/v1/completions`.
COMPLETION_MAX_TOKENS = 16
NUM_SEEDS = 2**64


def num_candidates(fields: CompletionFields, n: int, max_n: int) -> int:
    """Return the number of completions to generate per prompt, of which the best `n` are returned.

    Raises:
        RequestError: best_of is less than `n`, more than `server.max_n`, or more than `n` in a stream.
    """
    best_of = n if fields.best_of is None else fields.best_of
    if best_of < n:
        raise RequestError(f"best_of is {best_of} and n is {n}: best_of must be at least n", param="best_of")
    if best_of > max_n:
        raise RequestError(
            f"best_of is {best_of}; server.max_n is {max_n}: ask for fewer candidates", param="best_of"
        )
    if fields.stream and best_of > n:
        raise RequestError(
            f"best_of is {best_of} and n is {n}: the best are known only at the end, so leave out stream",
            param="best_of",
        )
    return best_of


def default_max_tokens(fields: type[SamplingFields], model: ServedModel) -> int | None:
    """Return the default of max_tokens; None means all the room that the prompt leaves."""
    if model.sampling.max_tokens is None and issubclass(fields, CompletionFields):
        return COMPLETION_MAX_TOKENS
    return model.sampling.max_tokens


def choice_seed(seed: int, choice: int) -> int:
    """Return the seed of a choice; choice 0 has the request's, so that n=1 equals the first choice of n=2.

    Args:
        seed: the request's; a negative one counts as its 64-bit two's complement.
    """
    if choice == 0:
        return seed % NUM_SEEDS
    digest = hashlib.sha256(f"{seed % NUM_SEEDS}:{choice}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def resolve_sampling(
    fields: ChatFields | CompletionFields, model: ServedModel, prompt_len: int
) -> SamplingParams:
    """Apply defaults, lower max_tokens to what fits, and check what depends on the model.

    The result contains the seed of choice 0, drawn at random if the client sent none.

    Raises:
        RequestError: the prompt leaves no room, min_tokens does not fit, or a token id is out of range.
    """
    max_tokens = _max_tokens(fields, model, prompt_len)
    if fields.min_tokens > max_tokens:
        raise RequestError(
            f"min_tokens is {fields.min_tokens}; at most {max_tokens} tokens are generated: lower it",
            param="min_tokens",
        )
    numbers: dict[str, Any] = {}
    for number in NUMBERS:
        sent = getattr(fields, number.name)
        numbers[number.name] = getattr(model.sampling, number.name) if sent is None else sent
    numbers["top_k"] = max(numbers["top_k"], 0)
    seed = secrets.randbits(64) if fields.seed is None else fields.seed
    return SamplingParams(
        max_tokens=max_tokens,
        **numbers,
        seed=choice_seed(seed, 0),
        stop_token_ids=_stop_token_ids(fields, model),
        min_tokens=fields.min_tokens,
        logit_bias=_logit_bias(fields, model),
        top_logprobs=_top_logprobs(fields),
    )


def _max_tokens(fields: ChatFields | CompletionFields, model: ServedModel, prompt_len: int) -> int:
    limit = model.max_model_len
    room = limit - prompt_len
    # Nothing is generated after an echoed prompt with max_tokens 0, so it may use all of max_model_len.
    if room < (0 if fields.max_tokens == 0 else 1):
        raise ContextLengthError(
            f"prompt has {prompt_len} tokens; max_model_len is {limit}: "
            f"shorten it or raise models[{model.position}].{model.length_limit_key}",
            param="messages" if isinstance(fields, ChatFields) else "prompt",
        )
    sent = _sent_max_tokens(fields)
    if sent is None:
        default = default_max_tokens(type(fields), model)
        return room if default is None else min(default, room)
    return min(sent, room)


def lowered_max_tokens(fields: ChatFields | CompletionFields, params: Sequence[SamplingParams]) -> int | None:
    """Return the smallest number that max_tokens was lowered to, because no more fits; None if all fit.

    Args:
        params: those of each prompt.
    """
    sent = _sent_max_tokens(fields)
    least = min(each.max_tokens for each in params)
    return least if sent is not None and least < sent else None


def _sent_max_tokens(fields: ChatFields | CompletionFields) -> int | None:
    if isinstance(fields, ChatFields) and fields.max_completion_tokens is not None:
        return fields.max_completion_tokens
    return fields.max_tokens


def _stop_token_ids(fields: SamplingFields, model: ServedModel) -> tuple[int, ...]:
    for i, token_id in enumerate(fields.stop_token_ids):
        if token_id >= model.card.vocab_size:
            raise _not_a_token(f"stop_token_ids[{i}]", token_id, model)
    eos = () if fields.ignore_eos else model.card.eos_token_ids
    stop_token_ids = tuple(dict.fromkeys((*eos, *fields.stop_token_ids)))
    if len(stop_token_ids) > MAX_STOP_TOKEN_IDS:
        raise RequestError(
            f"stop_token_ids and the model's {len(eos)} end tokens are {len(stop_token_ids)} together; "
            f"the limit is {MAX_STOP_TOKEN_IDS}: send fewer",
            param="stop_token_ids",
        )
    return stop_token_ids


def _logit_bias(fields: SamplingFields, model: ServedModel) -> tuple[tuple[int, float], ...]:
    for token_id in fields.logit_bias:
        if token_id >= model.card.vocab_size:
            raise _not_a_token(f"logit_bias.{token_id}", token_id, model)
    return tuple(fields.logit_bias.items())


def _not_a_token(path: str, token_id: int, model: ServedModel) -> RequestError:
    return RequestError(
        f"{path} is token {token_id}; the vocabulary has {model.card.vocab_size} tokens: use a smaller id",
        param=path,
    )


def _top_logprobs(fields: ChatFields | CompletionFields) -> int | None:
    if isinstance(fields, ChatFields):
        return (fields.top_logprobs or 0) if fields.logprobs else None
    return fields.logprobs
