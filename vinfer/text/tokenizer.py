"""Converts text to token ids and back, with the files of a bundle's `tokenizer/` directory.

Owns the two `tokenizers.Tokenizer` objects of a model. Neither changes after `load`, so all worker threads
can share one `Tokenizer`. Does not know models, requests or templates.

Encoding uses `encode_batch_fast`, the only way to encode that releases the GIL: a megabyte through `encode`
would stop the event loop for more than a second.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from vinfer.errors import BundleError, RequestError
from vinfer.text.control_tokens import ControlTokens, RenderedPrompt
from vinfer.text.token_lengths import max_bytes_per_token, num_dense_bytes

TOKENIZER_FILE = "tokenizer.json"
SPECIAL_TOKENS_FILE = "special_tokens.json"
_NAMED_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


class Tokenizer:
    """The tokenizer of one model.

    Attributes:
        vocab_size: largest id + 1, added tokens included.
        special_ids: ids that `skip_special_tokens` leaves out of decoded text.
        added_tokens: by id, the tokens added to the vocabulary.
        special_tokens: bos_token, eos_token, pad_token and unk_token, each a string or None.
        control_tokens: the strings of `special_ids`.
        max_bytes_per_token: most bytes of text, white space aside, of one token; None if there is no limit.
        decoder_types: the decoders of tokenizer.json in order, such as ("Sequence", "ByteFallback", "Fuse").
    """

    def __init__(
        self,
        fast: tokenizers.Tokenizer,
        plain: tokenizers.Tokenizer,
        special_tokens: Mapping[str, str | None],
    ) -> None:
        """Take ownership of two equal tokenizers; call `load` instead."""
        added: dict[int, tokenizers.AddedToken] = fast.get_added_tokens_decoder()
        special = {token_id: token for token_id, token in added.items() if token.special}
        self._fast = fast
        self._plain = plain
        self.added_tokens = added
        self.special_tokens = dict(special_tokens)
        self.special_ids = frozenset(special)
        self.vocab_size: int = 1 + max(fast.get_vocab(with_added_tokens=True).values(), default=-1)
        self.control_tokens = ControlTokens([token.content for token in special.values()])
        self.decoder_types = _decoder_types(fast)
        self.max_bytes_per_token = max_bytes_per_token(fast)
        unk_token = special_tokens.get("unk_token")
        # Tokens that users must not be able to write; not the unknown token, which any text may become.
        self._control_ids = frozenset(
            token_id for token_id, token in special.items() if token.content != unk_token
        )

        # The plain tokenizer treats special-token strings as text. Those that the template wrote are replaced
        # by aliases with a secret that no text can contain: it is drawn per process and never in any output.
        secret = f"\x00{secrets.token_hex(16)}"
        plain.encode_special_tokens = True
        aliases = {token.content: f"{secret}{token_id}\x00" for token_id, token in special.items()}
        self._aliases = aliases
        self._break = f"{secret}\x00"
        self._one_character_aliases = {ord(text): alias for text, alias in aliases.items() if len(text) == 1}
        plain.add_tokens(
            [
                tokenizers.AddedToken(
                    aliases[token.content],
                    normalized=False,
                    special=False,
                    lstrip=token.lstrip,
                    rstrip=token.rstrip,
                )
                for token in special.values()
            ]
            + [tokenizers.AddedToken(self._break, normalized=False, special=False)]
        )
        self._alias_ids = {plain.token_to_id(aliases[t.content]): token_id for token_id, t in special.items()}
        self._break_id = plain.token_to_id(self._break)

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """Load `tokenizer.json` and `special_tokens.json`; truncation and padding are switched off.

        Raises:
            BundleError: a file is missing or invalid.
        """
        special_tokens, named = _read_special_tokens(directory / SPECIAL_TOKENS_FILE)
        path = directory / TOKENIZER_FILE
        pair: list[tokenizers.Tokenizer] = []
        for _ in range(2):
            try:
                tokenizer = tokenizers.Tokenizer.from_file(str(path))
            except Exception as error:  # noqa: BLE001 - the binding raises nothing more specific
                raise BundleError(
                    f"{path}: not a readable tokenizer: {error}; build the bundle again"
                ) from None
            tokenizer.no_truncation()
            tokenizer.no_padding()
            _register_special(tokenizer, named)
            pair.append(tokenizer)
        return cls(pair[0], pair[1], special_tokens)

    def least_tokens(self, text: str) -> int:
        """Return a number of tokens that a text has at least, much faster than encoding it."""
        if self.max_bytes_per_token is None:
            return 0
        return -(-num_dense_bytes(text) // self.max_bytes_per_token)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Encode text in which special-token strings are special tokens (templates, raw completions).

        Raises:
            RequestError: the text is not valid Unicode.
        """
        return _encode(self._fast, text, add_special_tokens=add_special_tokens)

    def encode_plain(self, text: str) -> list[int]:
        """Encode text in which nothing is special; no BOS is added.

        Raises:
            RequestError: the text is not valid Unicode, or contains a disguised special token that cannot be
                told from a real one.
        """
        return self._encode_aliased([text])

    def encode_prompt(self, rendered: RenderedPrompt) -> list[int]:
        """Encode a rendered chat; only the template's own special tokens are special, and no BOS is added.

        Without special-token strings in the user's text this is `encode(text, add_special_tokens=False)`.

        Raises:
            RequestError: as `encode_plain`.
        """
        if not rendered.has_user_specials:
            token_ids = self.encode(rendered.text, add_special_tokens=False)
            # There are more if normalization turned something else into one, such as full-width letters.
            if sum(map(self._control_ids.__contains__, token_ids)) <= len(rendered.control_spans):
                return token_ids
        pieces = []
        read = 0
        for start, end in rendered.control_spans:
            pieces += [rendered.text[read:start], self._aliases[rendered.text[start:end]]]
            read = end
        pieces.append(rendered.text[read:])
        return self._encode_aliased(pieces)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Decode a whole sequence; ids outside the vocabulary are left out."""
        text: str = self._fast.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        return text

    def token_to_id(self, token: str) -> int | None:
        token_id: int | None = self._fast.token_to_id(token)
        return token_id

    def id_to_token(self, token_id: int) -> str | None:
        """Return the token as the vocabulary spells it (`ĠParis`, `▁Paris`), not as text."""
        token: str | None = self._fast.id_to_token(token_id)
        return token

    def _encode_aliased(self, pieces: list[str]) -> list[int]:
        """Encode alternating text and aliases (text first) and replace the aliases with special tokens."""
        if self._one_character_aliases:
            pieces[::2] = [text.translate(self._one_character_aliases) for text in pieces[::2]]
        token_ids = _encode(self._plain, "".join(pieces), add_special_tokens=False)
        if not self._control_ids.isdisjoint(token_ids):
            # Some models (Unigram, WordLevel) find special tokens as words of their vocabulary, so split
            # those words. Only done if needed, because a split may change how the next word is tokenized.
            pieces[::2] = [self.control_tokens.mark(text, self._break) for text in pieces[::2]]
            token_ids = _encode(self._plain, "".join(pieces), add_special_tokens=False)
            if not self._control_ids.isdisjoint(token_ids):
                raise RequestError(
                    "text spells a special token in characters that this model treats as equivalent: "
                    "use plain characters"
                )
        alias_ids = self._alias_ids
        return [alias_ids.get(token_id, token_id) for token_id in token_ids if token_id != self._break_id]


def _encode(tokenizer: tokenizers.Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"text has a lone surrogate at character {error.start}; send valid Unicode"
        ) from None
    token_ids: list[int] = tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
    return token_ids


def _read_special_tokens(path: Path) -> tuple[dict[str, str | None], list[str]]:
    """Return the four named tokens and the strings of all special tokens."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: not readable: {error}; build the bundle again") from None
    named = {key: content.get(key) for key in _NAMED_TOKENS} if isinstance(content, dict) else {}
    extra = content.get("additional_special_tokens") or [] if named else None
    if (
        not isinstance(extra, list)
        or not all(isinstance(token, str) for token in extra)
        or not all(token is None or isinstance(token, str) for token in named.values())
    ):
        raise BundleError(f"{path}: special tokens must be strings; build the bundle again")
    return named, [token for token in (*named.values(), *extra) if token]


def _register_special(tokenizer: tokenizers.Tokenizer, named: Iterable[str]) -> None:
    """Make the named tokens special, as transformers does; a token missing from the vocabulary stays text."""
    added = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    for name in dict.fromkeys(named):
        if tokenizer.token_to_id(name) is None or (name in added and added[name].special):
            continue
        flags = (
            {key: getattr(added[name], key) for key in ("lstrip", "rstrip", "single_word")}
            if name in added
            else {}
        )
        tokenizer.add_special_tokens([tokenizers.AddedToken(name, normalized=False, special=True, **flags)])


def _decoder_types(tokenizer: tokenizers.Tokenizer) -> tuple[str, ...]:
    if tokenizer.decoder is None:
        return ()
    found: list[str] = []

    def walk(decoder: dict[str, Any]) -> None:
        found.append(decoder["type"])
        for child in decoder.get("decoders", ()):
            walk(child)

    walk(json.loads(tokenizer.decoder.__getstate__()))
    return tuple(found)
