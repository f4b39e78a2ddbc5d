"""From request fields to prompt token ids: chat templates, tokenization, and prompts sent as token ids.

Runs in worker threads: templates and tokenizers take milliseconds to seconds of CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vinfer.errors import ContextLengthError, RequestError
from vinfer.server.fields.chat import ChatFields
from vinfer.server.fields.completions import MAX_PROMPTS, CompletionFields
from vinfer.server.fields.count import CountMessages, CountText
from vinfer.server.fields.embeddings import EmbeddingFields
from vinfer.server.fields.messages import ChatMessage
from vinfer.server.fields.template_kwargs import template_kwargs
from vinfer.server.fields.tokenization import DetokenizeFields, TokenizeMessages, TokenizeText
from vinfer.server.fields.tools import Tool
from vinfer.server.generate.call_ids import checked_length, with_call_ids
from vinfer.server.model_table import ServedModel
from vinfer.text.image_placeholders import expand_placeholders

if TYPE_CHECKING:
    from vinfer.images import PreparedImage

PromptIds = tuple[int, ...]


def chat_prompt_ids(
    fields: ChatFields | TokenizeMessages, model: ServedModel, images: Sequence[PreparedImage] = ()
) -> PromptIds:
    """Render a conversation through the model's template and tokenize it.

    Args:
        images: the conversation's images, in order.

    Raises:
        RequestError: the model has no template, or the template refuses the conversation.
    """
    add_generation_prompt = fields.add_generation_prompt
    if add_generation_prompt is None:
        add_generation_prompt = not fields.continue_final_message
    return _render(
        model,
        fields.messages,
        images,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=fields.continue_final_message,
        kwargs=template_kwargs(model, fields.chat_template_kwargs, fields.reasoning_effort),
        tools=fields.callable_tools if isinstance(fields, ChatFields) else fields.tools,
        # Whoever asks how long a prompt is may ask about one that is too long.
        is_limited=isinstance(fields, ChatFields),
    )


def completion_prompt_ids(fields: CompletionFields, model: ServedModel) -> list[PromptIds]:
    """Parse `prompt`: a string, strings, token ids, or lists of token ids.

    An empty text means the beginning-of-sequence token, if the model has one.

    Raises:
        RequestError: names the item that is none of these, empty, or not in the vocabulary.
    """
    return [ids for _, ids in _taken_apart(fields.prompt, "prompt", model, _text_ids)]


def embedding_prompt_ids(fields: EmbeddingFields, model: ServedModel) -> list[PromptIds]:
    """Parse `input` like the `prompt` of a completion; an empty text is refused.

    `truncate_prompt_tokens` cuts off the beginning, as vLLM does.

    Raises:
        RequestError: names the item that is not a prompt, is empty, or is not in the vocabulary.
        ContextLengthError: names the item that is longer than max_model_len.
    """
    limit = model.max_model_len
    kept = limit if fields.truncate_prompt_tokens == -1 else fields.truncate_prompt_tokens
    parts = _taken_apart(fields.input, "input", model, _embedded_text_ids, is_limited=kept is None)
    prompts = []
    for path, prompt_ids in parts:
        if kept is not None and len(prompt_ids) > kept:
            prompt_ids = _last_tokens(prompt_ids, kept, model)
        if len(prompt_ids) > limit:
            raise _too_long(path, f"{len(prompt_ids)} tokens", model)
        prompts.append(prompt_ids)
    return prompts


def count_prompt_tokens(
    fields: CountText | CountMessages, model: ServedModel, images: Sequence[PreparedImage] = ()
) -> int:
    """Return the number of tokens of a text, without template or BOS, or of a conversation's prompt.

    Raises:
        RequestError: the template refuses the conversation.
    """
    if isinstance(fields, CountText):
        return len(model.tokenizer.encode(fields.conversation, add_special_tokens=False))
    conversation = fields.conversation
    prompt_ids = _render(
        model,
        conversation,
        images,
        add_generation_prompt=True,
        continue_final_message=False,
        kwargs={},
        is_limited=False,
    )
    return len(prompt_ids)


def tokenized_ids(
    fields: TokenizeText | TokenizeMessages, model: ServedModel, images: Sequence[PreparedImage] = ()
) -> PromptIds:
    """Tokenize a text as `/v1/completions` does, or a conversation as `/v1/chat/completions` does.

    Special-token strings are special tokens in a text, whose author writes the whole prompt. In a message
    they are plain text.

    Raises:
        RequestError: the model has no template, or the template refuses the conversation.
    """
    if isinstance(fields, TokenizeMessages):
        return chat_prompt_ids(fields, model, images)
    return tuple(model.tokenizer.encode(fields.prompt, add_special_tokens=fields.add_special_tokens))


def detokenized_text(fields: DetokenizeFields, model: ServedModel) -> str:
    """Decode token ids; special tokens are shown as they are spelled.

    Raises:
        RequestError: names the first id without a token.
    """
    num_ids = model.tokenizer.vocab_size
    for i, token_id in enumerate(fields.tokens):
        if token_id >= num_ids:
            raise RequestError(
                f"tokens[{i}] is {token_id}; the tokenizer's ids end at {num_ids - 1}: leave it out",
                param=f"tokens[{i}]",
            )
    return model.tokenizer.decode(fields.tokens, skip_special_tokens=False)


def _render(
    model: ServedModel,
    messages: list[ChatMessage],
    images: Sequence[PreparedImage],
    *,
    add_generation_prompt: bool,
    continue_final_message: bool,
    kwargs: Mapping[str, Any],
    tools: Sequence[Tool] = (),
    is_limited: bool = True,
) -> PromptIds:
    form = model.chat_form(has_tools=bool(tools))
    if form is None:
        raise RequestError(f"model {model.name} has no chat template: use /v1/completions", param="messages")
    if tools and form.answers.tool_format is None:
        raise RequestError(
            f"tools: models[{model.position}].tool_parser is none, so model {model.name} takes no tools: "
            "leave them out or change the key",
            param="tools",
        )
    inputs = with_call_ids(
        [message.as_template_input() for message in messages], checked_length(form.template.source)
    )
    rendered = form.render(
        inputs,
        [tool.as_template_input() for tool in tools],
        add_generation_prompt=add_generation_prompt,
        continue_final_message=continue_final_message,
        **kwargs,
    )
    if model.manifest.images is not None:
        rendered = expand_placeholders(
            rendered,
            model.manifest.images.processing.placeholder,
            [image.num_tokens for image in images],
            model.tokenizer.control_tokens,
        )
    if is_limited:
        _check_length(rendered.text, "messages", model)
    return tuple(model.tokenizer.encode_prompt(rendered))


def _check_length(text: str, path: str, model: ServedModel) -> None:
    """Refuse a text that cannot fit, before it is tokenized, which takes seconds per 4 MB.

    Raises:
        ContextLengthError: whatever its tokens are, they are more than max_model_len.
    """
    least = model.tokenizer.least_tokens(text)
    if least > model.max_model_len:
        raise _too_long(path, f"{len(text)} characters, which are at least {least} tokens", model)


def _too_long(path: str, size: str, model: ServedModel) -> ContextLengthError:
    return ContextLengthError(
        f"{path} has {size}; max_model_len is {model.max_model_len}: shorten it or raise "
        f"models[{model.position}].{model.length_limit_key}",
        param=path,
    )


def _taken_apart(
    sent: Any,
    name: str,
    model: ServedModel,
    text_ids: Callable[[str, str, ServedModel], PromptIds],
    *,
    is_limited: bool = True,
) -> Iterator[tuple[str, PromptIds]]:
    """Yield the path and the ids of each prompt in a field.

    Args:
        text_ids: (text, path, model) -> ids.
        is_limited: refuse what is longer than max_model_len at once; not if it will be truncated.
    """
    if isinstance(sent, str):
        if is_limited:
            _check_length(sent, name, model)
        yield name, text_ids(sent, name, model)
        return
    if not isinstance(sent, list):
        raise _not_a_prompt(name)
    if not sent:
        raise RequestError(f"{name} is empty: send text or token ids", param=name)
    if type(sent[0]) is int:
        yield name, _checked_ids(sent, name, model, is_limited=is_limited)
        return
    if len(sent) > MAX_PROMPTS:
        raise RequestError(
            f"{name} has {len(sent)} prompts; the limit is {MAX_PROMPTS}: send several requests", param=name
        )
    for i, item in enumerate(sent):
        path = f"{name}[{i}]"
        if isinstance(item, str):
            if is_limited:
                _check_length(item, path, model)
            yield path, text_ids(item, path, model)
        elif isinstance(item, list):
            yield path, _checked_ids(item, path, model, is_limited=is_limited)
        else:
            raise _not_a_prompt(path)


def _last_tokens(prompt_ids: PromptIds, num: int, model: ServedModel) -> PromptIds:
    """Return the last tokens, after the beginning-of-sequence token if the prompt has one."""
    has_first = prompt_ids[0] == model.card.bos_token_id and num > 1
    return (*prompt_ids[:1], *prompt_ids[len(prompt_ids) - num + 1 :]) if has_first else prompt_ids[-num:]


def _embedded_text_ids(text: str, path: str, model: ServedModel) -> PromptIds:
    token_ids = tuple(model.tokenizer.encode(text, add_special_tokens=True)) if text else ()
    if not token_ids:
        raise RequestError(f"{path} is empty: send text or token ids", param=path)
    return token_ids


def _text_ids(text: str, path: str, model: ServedModel) -> PromptIds:
    token_ids = tuple(model.tokenizer.encode(text, add_special_tokens=True))
    if token_ids:
        return token_ids
    if model.card.bos_token_id is None:
        raise RequestError(f"{path} is empty: send text or token ids", param=path)
    return (model.card.bos_token_id,)


def _checked_ids(token_ids: list[Any], path: str, model: ServedModel, *, is_limited: bool) -> PromptIds:
    if not token_ids:
        raise RequestError(f"{path} is empty: send text or token ids", param=path)
    if is_limited and len(token_ids) > model.max_model_len:
        raise _too_long(path, f"{len(token_ids)} tokens", model)
    for i, token_id in enumerate(token_ids):
        if type(token_id) is not int or not 0 <= token_id < model.card.vocab_size:
            raise RequestError(
                f"{path}[{i}] is not a token id; ids are integers from 0 to {model.card.vocab_size - 1}",
                param=f"{path}[{i}]",
            )
    return tuple(token_ids)


def _not_a_prompt(path: str) -> RequestError:
    return RequestError(
        f"{path} must be a string, an array of strings, of token ids, or of arrays of token ids", param=path
    )
