"""`POST /tokenize`, `POST /detokenize`, `GET /tokenizer_info`: text to ids and back, in vLLM's format.

Event loop; work that grows with the text, including answers, goes to worker threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse

from vinfer.server.answers.bodies import AddedToken, Detokenized, Tokenized, TokenizerInfo
from vinfer.server.fields.tokenization import (
    DETOKENIZE,
    DetokenizeFields,
    TokenizeMessages,
    TokenizeText,
    parse_tokenize,
)
from vinfer.server.generate.images import image_sources, prepare_images
from vinfer.server.generate.prompts import detokenized_text, tokenized_ids
from vinfer.server.http.body import read_fields
from vinfer.server.model_table import ServedModel
from vinfer.server.services import Services

if TYPE_CHECKING:
    from vinfer.images import PreparedImage


async def tokenize(services: Services, request: HttpRequest) -> JSONResponse:
    """Return the token ids that a text or a conversation has as a prompt.

    Raises:
        RequestError: the request is refused.
    """
    fields = await read_fields(request, services, parse_tokenize)
    model = services.models.serving_or_only(fields.model)
    messages = fields.messages if isinstance(fields, TokenizeMessages) else ()
    images = await prepare_images(services, image_sources(messages, "messages"), model)
    return await services.in_worker(_tokenized, fields, model, images)


async def detokenize(services: Services, request: HttpRequest) -> JSONResponse:
    """Return the text of token ids.

    Raises:
        RequestError: the request is refused.
    """
    fields = await read_fields(request, services, DETOKENIZE.parse)
    return await services.in_worker(_detokenized, fields, services.models.serving_or_only(fields.model))


async def tokenizer_info(services: Services, request: HttpRequest) -> JSONResponse:
    """Describe a model's tokenizer, its chat template included.

    The query `?model=NAME` selects one of several models.

    Raises:
        RequestError: several models are served and none is named.
        NotReadyError: the model is still loading.
    """
    model = services.models.serving_or_only(request.query_params.get("model"))
    return await services.in_worker(_info, model)


def _tokenized(
    fields: TokenizeText | TokenizeMessages, model: ServedModel, images: Sequence[PreparedImage]
) -> JSONResponse:
    token_ids = tokenized_ids(fields, model, images)
    id_to_token = model.tokenizer.id_to_token
    body: Tokenized = {
        "count": len(token_ids),
        "max_model_len": model.max_model_len,
        "tokens": token_ids,
        "token_strs": [id_to_token(each) or "" for each in token_ids] if fields.return_token_strs else None,
    }
    return JSONResponse(body)


def _detokenized(fields: DetokenizeFields, model: ServedModel) -> JSONResponse:
    body: Detokenized = {"prompt": detokenized_text(fields, model)}
    return JSONResponse(body)


def _info(model: ServedModel) -> JSONResponse:
    """Return the tokenizer with the field names of transformers' tokenizer_config.json, as vLLM does."""
    tokenizer = model.tokenizer
    named = tokenizer.special_tokens
    added: dict[str, AddedToken] = {
        str(token_id): {
            "content": token.content,
            "lstrip": token.lstrip,
            "normalized": token.normalized,
            "rstrip": token.rstrip,
            "single_word": token.single_word,
            "special": token.special,
        }
        for token_id, token in sorted(tokenizer.added_tokens.items())
    }
    body: TokenizerInfo = {
        "model": model.name,
        # The class in transformers that reads any tokenizer.json.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.max_model_len,
        "vocab_size": tokenizer.vocab_size,
        "bos_token": named["bos_token"],
        "eos_token": named["eos_token"],
        "pad_token": named["pad_token"],
        "unk_token": named["unk_token"],
        "additional_special_tokens": [
            token["content"]
            for token in added.values()
            if token["special"] and token["content"] not in named.values()
        ],
        "added_tokens_decoder": added,
        "chat_template": None if model.chat_template is None else model.chat_template.source,
    }
    return JSONResponse(body)
