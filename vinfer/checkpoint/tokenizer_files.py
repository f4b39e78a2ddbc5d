"""Reads a tokenizer from a Hugging Face directory and writes the tokenizer part of a bundle.

Runs in the build half, on any thread. A bundle's tokenizer is always tokenizer.json (rules of the
`tokenizers` package), special_tokens.json and, for chat models, their chat templates.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import Tokenizer

from vinfer.checkpoint.added_tokens import declared_tokens, refuse_split_tokens, with_declared_tokens
from vinfer.checkpoint.chat_templates import ChatTemplates, read_chat_templates
from vinfer.checkpoint.json_file import (
    MAX_TOKENIZER_BYTES,
    read_optional_json_object,
    read_text,
)
from vinfer.errors import CheckpointError
from vinfer.image_processing import Placeholder

_NAMED_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
_SLOW_TOKENIZER_FILES = ("tokenizer.model", "vocab.json", "vocab.txt", "sentencepiece.bpe.model")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFiles:
    """The tokenizer of a checkpoint, ready to be written.

    Attributes:
        tokenizer_json: text of tokenizer.json; already checked that it loads.
        templates: the chat templates.
    """

    tokenizer_json: str
    templates: ChatTemplates
    bos_token: str | None = None
    eos_token: str | None = None
    pad_token: str | None = None
    unk_token: str | None = None
    additional_special_tokens: tuple[str, ...] = ()

    def write(self, directory: Path) -> None:
        """Write tokenizer.json, special_tokens.json and any chat templates to `directory`."""
        directory.mkdir(parents=True, exist_ok=True)
        special_tokens: dict[str, object] = {name: getattr(self, name) for name in _NAMED_TOKENS}
        special_tokens["additional_special_tokens"] = list(self.additional_special_tokens)
        (directory / "tokenizer.json").write_text(self.tokenizer_json, encoding="utf-8", newline="")
        (directory / "special_tokens.json").write_text(
            json.dumps(special_tokens, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
        )
        for name, template in (
            ("chat_template.jinja", self.templates.default),
            ("tool_use_template.jinja", self.templates.tool_use),
        ):
            if template is not None:
                (directory / name).write_text(template, encoding="utf-8", newline="")

    def with_placeholder(
        self, placeholder: Placeholder, *, image_token_id: int, where: str
    ) -> TokenizerFiles:
        """Make the image placeholder a special token, so that it is plain text when a user types it.

        Raises:
            CheckpointError: the tokenizer has no such token, or its id differs from the one in config.json.
        """
        tokenizer = Tokenizer.from_str(self.tokenizer_json)
        around = (placeholder.before.strip(), placeholder.after.strip())
        tokens = (placeholder.marker, placeholder.repeated, *(token for token in around if token))
        for token in tokens:
            if tokenizer.token_to_id(token) is None:
                raise CheckpointError(
                    f"{where}: tokenizer.json has no token {token!r}, which images need: "
                    "tokenizer and processor files belong to different models"
                )
        found = tokenizer.token_to_id(placeholder.repeated)
        if found != image_token_id:
            raise CheckpointError(
                f"{where}: config.json says image token {image_token_id}; {placeholder.repeated!r} is token "
                f"{found} in tokenizer.json: they belong to different models"
            )
        special = (*self.additional_special_tokens, *tokens)
        return dataclasses.replace(self, additional_special_tokens=tuple(dict.fromkeys(special)))

    def eos_token_id(self) -> int | None:
        """Return the id of the end token; None if there is none."""
        if self.eos_token is None:
            return None
        id_ = Tokenizer.from_str(self.tokenizer_json).token_to_id(self.eos_token)
        return None if id_ is None else int(id_)

    def refuse_unknown_end(self, eos_token_ids: Sequence[int], where: str) -> None:
        """Check that an end token has a name in the tokenizer; otherwise its added tokens are missing.

        Raises:
            CheckpointError: no end token has one.
        """
        tokenizer = Tokenizer.from_str(self.tokenizer_json)
        if eos_token_ids and all(tokenizer.id_to_token(id_) is None for id_ in eos_token_ids):
            raise CheckpointError(
                f"{where}: eos_token_id {', '.join(map(str, eos_token_ids))} has no token in tokenizer.json, "
                f"which has {tokenizer.get_vocab_size()}: its added tokens are missing; download it again"
            )


def read_tokenizer_files(directory: Path, *, vocab_size: int) -> TokenizerFiles:
    """Read the tokenizer of a Hugging Face directory, with the tokens that only other files of it have.

    The post-processor of tokenizer.json decides which tokens surround a text. `add_bos_token` and
    `add_eos_token` of tokenizer_config.json are ignored, as in transformers 5.

    Raises:
        CheckpointError: tokenizer.json is missing or does not load, a related file is malformed, or the begin
            or end token, or one that the chat template writes, is not a token of a model of this size.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        slow = [name for name in _SLOW_TOKENIZER_FILES if (directory / name).is_file()]
        found = (
            f"only {', '.join(slow)}, a slow tokenizer, which vinfer does not convert yet" if slow else "none"
        )
        raise CheckpointError(
            f"{directory} has no tokenizer.json (found: {found}): write one with transformers, "
            "`AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)`, and run again"
        )
    text = read_text(path, max_bytes=MAX_TOKENIZER_BYTES)
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the package raises bare Exception
        raise CheckpointError(
            f"{path} does not load ({error}): download the checkpoint again, or update the tokenizers package"
        ) from error
    config = read_optional_json_object(directory / "tokenizer_config.json")
    special = read_optional_json_object(directory / "special_tokens_map.json")
    named = {name: _token_text(config.get(name) or special.get(name)) for name in _NAMED_TOKENS}
    additional = _additional_tokens(config, special)
    templates = read_chat_templates(directory, config)
    names = [name for name in (*named.values(), *additional) if name]
    added = read_optional_json_object(directory / "added_tokens.json", max_bytes=MAX_TOKENIZER_BYTES)
    declared = declared_tokens(config, added, names, str(directory))
    if with_declared_tokens(tokenizer, declared, names, vocab_size=vocab_size, where=str(directory)):
        text = tokenizer.to_str()
    written = [token.content for token in declared.values()]
    roles = {token: "chat template writes" for token in [*names, *written] if templates.write(token)}
    roles |= {token: name for name in ("bos_token", "eos_token") if (token := named[name])}
    refuse_split_tokens(tokenizer, roles, str(directory))
    return TokenizerFiles(
        tokenizer_json=text,
        bos_token=named["bos_token"],
        eos_token=named["eos_token"],
        pad_token=named["pad_token"],
        unk_token=named["unk_token"],
        additional_special_tokens=additional,
        templates=templates,
    )


def _token_text(value: object) -> str | None:
    """Read a token written as a string or as a serialized AddedToken."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _additional_tokens(config: Mapping[str, object], special: Mapping[str, object]) -> tuple[str, ...]:
    """Read the list of transformers 4 (`additional_special_tokens`) or 5 (`extra_special_tokens`)."""
    for source in (config, special):
        for key in ("additional_special_tokens", "extra_special_tokens"):
            value = source.get(key)
            entries = list(value.values()) if isinstance(value, dict) else value
            if isinstance(entries, list) and entries:
                return tuple(text for entry in entries if (text := _token_text(entry)) is not None)
    return ()
