"""The prompt that `echo` of `/v1/completions` puts before its completion.

Runs in worker threads, because offsets need a pass over the prompt. Knows neither HTTP nor the engine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from vinfer.errors import RequestError
from vinfer.server.fields.completions import CompletionFields
from vinfer.server.generate.prompts import PromptIds
from vinfer.server.model_table import ServedModel
from vinfer.text.detokenizer import Detokenizer


@dataclasses.dataclass(frozen=True, slots=True)
class Echo:
    """One prompt as it is returned.

    Attributes:
        text: as it was sent; for token ids, what they decode to.
        offsets: where each token begins in the text. A token inside a character begins where that does.
        scores: whether the tokens' logprobs are returned too.
    """

    text: str
    token_ids: PromptIds
    offsets: tuple[int, ...]
    scores: bool


def echoes(fields: CompletionFields, prompts: Sequence[PromptIds], model: ServedModel) -> list[Echo]:
    """Return the echo of each prompt; empty if none was requested.

    Raises:
        RequestError: logprobs of the prompt are requested and the model was built without them.
    """
    if not fields.echo:
        return []
    if fields.scores_prompt and not model.manifest.has_prompt_logprobs:
        raise RequestError(
            f"echo with logprobs needs prompt logprobs, which model {model.name} was built without: set "
            f"models[{model.position}].prompt_logprobs: true and serve again, or leave out echo or logprobs",
            param="echo",
        )
    sent = fields.prompt if isinstance(fields.prompt, list) else [fields.prompt]
    texts = [item if isinstance(item, str) else None for item in sent]
    # A flat list of ids is one prompt.
    texts = texts if len(texts) == len(prompts) else [None]
    return [_echo(fields, ids, text, model) for ids, text in zip(prompts, texts, strict=True)]


def _echo(fields: CompletionFields, token_ids: PromptIds, sent: str | None, model: ServedModel) -> Echo:
    detokenizer = Detokenizer(model.tokenizer, skip_special_tokens=fields.skip_special_tokens)
    pieces: list[str] = []
    offsets: list[int] = []
    offset = 0
    for token_id in token_ids:
        offsets.append(offset)
        pieces.append(detokenizer.push((token_id,)))
        offset += len(pieces[-1])
    if fields.max_tokens == 0:
        # Otherwise the completion may complete a character that the prompt began.
        pieces.append(detokenizer.flush())
    text = "".join(pieces) if sent is None else sent
    return Echo(text, token_ids, tuple(min(place, len(text)) for place in offsets), fields.scores_prompt)
