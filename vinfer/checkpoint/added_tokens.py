"""Adds to a tokenizer the tokens that only the files beside tokenizer.json have, as transformers does.

Runs in the build half, on any thread. Without them the markers of a chat template become several byte tokens,
and the end token never comes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from tokenizers import AddedToken, Tokenizer

from vinfer.errors import CheckpointError

_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")


def declared_tokens(
    config: Mapping[str, object], added: Mapping[str, object], special: Iterable[str], where: str
) -> dict[int, AddedToken]:
    """Return by id the tokens of `added_tokens_decoder`, or else of added_tokens.json.

    Args:
        config, added: tokenizer_config.json and added_tokens.json.
        special: strings of the special tokens, which added_tokens.json does not mark.
        where: the directory, for errors.

    Raises:
        CheckpointError: an entry is not a token.
    """
    decoder = config.get("added_tokens_decoder")
    if decoder is None:
        names = set(special)
        return {
            _id(id_, f"{where}/added_tokens.json"): AddedToken(
                text, normalized=text not in names, special=text in names
            )
            for text, id_ in added.items()
        }
    file = f"{where}/tokenizer_config.json"
    if not isinstance(decoder, dict):
        raise CheckpointError(f"{file}: added_tokens_decoder is not an object: download it again")
    return {_id(id_, file): _token(entry, file) for id_, entry in decoder.items()}


def with_declared_tokens(
    tokenizer: Tokenizer,
    declared: Mapping[int, AddedToken],
    named: Sequence[str],
    *,
    vocab_size: int,
    where: str,
) -> bool:
    """Add the tokens that the tokenizer lacks, in place; return whether there were any.

    Args:
        named: strings of special tokens whose files state no id; they follow the others.
        vocab_size: the model's; tokens beyond it are left out, because no weights belong to them.

    Raises:
        CheckpointError: a token would get another id than its file states.
    """
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    has_added = False
    for id_, token in sorted(declared.items()):
        if token.content in known or id_ >= vocab_size:
            continue
        tokenizer.add_tokens([token])
        has_added = True
        found = tokenizer.token_to_id(token.content)
        if found != id_:
            raise CheckpointError(
                f"{where}: {token.content!r} is token {id_} in the files beside tokenizer.json, and would be "
                f"token {found} in it: tokens before it are missing; download the tokenizer again"
            )
    for text in dict.fromkeys(named):
        if tokenizer.token_to_id(text) is None and tokenizer.get_vocab_size() < vocab_size:
            tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False)])
            has_added = True
    return has_added


def refuse_split_tokens(tokenizer: Tokenizer, tokens: Mapping[str, str], where: str) -> None:
    """Check that strings on which a conversation depends are single tokens.

    Args:
        tokens: what each string is, such as `eos_token`, by the string.

    Raises:
        CheckpointError: names the first that is not in the vocabulary.
    """
    for text, role in tokens.items():
        if tokenizer.token_to_id(text) is None:
            num_pieces = len(tokenizer.encode(text, add_special_tokens=False).ids)
            raise CheckpointError(
                f"{where}: {role} {text!r} is not a token of tokenizer.json, which makes {num_pieces} of it, "
                "and the model has no room for another: tokenizer and weights belong to different models"
            )


def _id(value: object, file: str) -> int:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise CheckpointError(f"{file}: {value!r} is not a token id: download it again")


def _token(entry: object, file: str) -> AddedToken:
    content = entry.get("content") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(content, str) or not content:
        raise CheckpointError(f"{file}: an entry of added_tokens_decoder is not a token: download it again")
    return AddedToken(content, **{flag: entry[flag] is True for flag in _FLAGS if flag in entry})
