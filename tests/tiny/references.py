"""Runs transformers on the same prompts and measures how far the engine's answers differ.

The reference reads prompt and answer in one forward pass without a cache, so each answer token is compared
with the logits after exactly the same tokens. Needs torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from tiny.checkpoints import NUM_TOKENS
from tiny.engines import Answer, Question

from vinfer.parity import figures
from vinfer.parity.figures import Logits
from vinfer.parity.figures import log_softmax as log_softmax

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAME_LOGPROBS = 1e-5
TIE = 1e-4
"""If the reference's two best logits are closer than this, either token is right."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One greedy answer against the reference.

    Attributes:
        wrong_steps: steps whose token is not the reference's best one.
        logprob_errors: float64 [steps], the largest logprob error of each step as a fraction of the largest
            logit.
    """

    wrong_steps: tuple[int, ...]
    logprob_errors: npt.NDArray[np.float64]


def answer_logits(
    model: PreTrainedModel,
    question: Question,
    answer: Answer,
    *,
    positions: Callable[[npt.NDArray[np.int64], int], npt.NDArray[np.int64]] | None = None,
) -> Logits:
    """Return float32 [steps, vocab], the logits from which each token of an answer is chosen.

    Args:
        positions: maps the positions 0, 1, ... and the prompt length to other positions.
    """
    import torch

    prompt_len = len(question.prompt_ids)
    ids = torch.tensor([[*question.prompt_ids, *answer.token_ids[:-1]]])
    places = np.arange(ids.shape[1])
    if positions is not None:
        places = positions(places, prompt_len)
    with torch.no_grad():
        logits = model(ids, position_ids=torch.from_numpy(places)[None], use_cache=False).logits
    result: Logits = logits[0, prompt_len - 1 :].float().numpy()
    return result


def long_answer_logits(
    model: PreTrainedModel, prompt_ids: Sequence[int], answer_ids: Sequence[int], *, chunk_len: int = 512
) -> Logits:
    """Return what `answer_logits` returns, for prompts whose attention scores do not fit into memory.

    Reads the prompt in chunks, with transformers' own cache.
    """
    import torch
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    ids = torch.tensor([[*prompt_ids, *answer_ids[:-1]]])
    last = len(prompt_ids) - 1
    with torch.inference_mode():
        for start in range(0, last, chunk_len):
            chunk = ids[:, start : min(start + chunk_len, last)]
            model(chunk, past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits = model(ids[:, last:], past_key_values=cache, use_cache=True).logits
    result: Logits = logits[0].float().numpy()
    return result


def compare(logits: Logits, answer: Answer) -> Comparison:
    """Compare a greedy answer, with 20 logprobs per token, with the reference's logits [steps, vocab]."""
    steps = figures.compare(logits, answer.token_ids, answer.logprobs, num_token_ids=NUM_TOKENS)
    wrong_steps = np.flatnonzero(steps.lags * steps.scale > TIE)
    return Comparison(tuple(int(step) for step in wrong_steps), steps.largest_errors)


def differing_steps(logits: Logits, one: Answer, other: Answer) -> list[int]:
    """List the steps at which two greedy answers to one question differ without a tie in the reference.

    After a tie, the texts differ, so the answers are not compared further.

    Args:
        logits: the reference's logits for `one`.
    """
    for step, (token, other_token) in enumerate(zip(one.token_ids, other.token_ids, strict=True)):
        if token != other_token:
            is_tie = abs(logits[step, token] - logits[step, other_token]) <= TIE
            return [] if is_tie else [step]
    return []


def assert_same(
    model: PreTrainedModel,
    questions: Sequence[Question],
    answers: Sequence[Answer],
    expected: Sequence[Answer],
) -> None:
    """Compare the answers of two engines, token for token.

    Greedy answers may part at a tie of the reference's two best logits. A draw depends on the seed and the
    index of the token alone, so the sampled ones have no such excuse.
    """
    for question, answer, other in zip(questions, answers, expected, strict=True):
        assert answer.finish_reason == other.finish_reason
        assert len(answer.token_ids) == len(other.token_ids) == len(answer.logprobs)
        if question.params.temperature == 0 and question.grammar is None:
            assert differing_steps(answer_logits(model, question, other), other, answer) == []
        else:
            assert answer.token_ids == other.token_ids
        if answer.token_ids == other.token_ids:
            for one, two in zip(answer.logprobs, other.logprobs, strict=True):
                np.testing.assert_allclose(
                    one.top_logprobs, two.top_logprobs, rtol=SAME_LOGPROBS, atol=SAME_LOGPROBS
                )


def embedding(answer: Answer) -> npt.NDArray[np.float64]:
    """Return float64 [hidden]: the L2-normalized sum of the parts of a pooled answer."""
    parts = np.stack([np.frombuffer(part, np.float32) for part in answer.pooled])
    pooled = parts.sum(axis=0, dtype=np.float64)
    return np.asarray(pooled / np.linalg.norm(pooled))


def embedding_error(model: PreTrainedModel, question: Question, answer: Answer) -> float:
    """Return the largest error of a pooled, L2-normalized answer.

    The reference is `AutoModel`'s last_hidden_state, pooled here.
    """
    import torch

    with torch.no_grad():
        output = model.base_model(torch.tensor([question.prompt_ids]), use_cache=False)
    hidden = output.last_hidden_state[0].double().numpy()
    pooled = hidden.mean(axis=0) if question.pooling == "mean" else hidden[-1]
    return float(np.abs(embedding(answer) - pooled / np.linalg.norm(pooled)).max())
