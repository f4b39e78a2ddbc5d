"""Constrained answers: grammars compiled by llguidance, and the position of each request in its grammar.

A `Grammar` is compiled once, on the compiler's single thread, and shared. A `GrammarMatcher` belongs to one
request and is advanced by the engine thread. Limits keep a hostile schema from blocking either thread. Knows
token ids, but neither arrays nor HTTP.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal, cast

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from vinfer.bundle.manifest import MASK_WORD_BITS, num_mask_words
from vinfer.engine.grammar_vocabulary import GrammarVocabulary
from vinfer.errors import RequestError

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions
    from llguidance._tokenizer import TokenizerWrapper

GrammarKind = Literal["json_schema", "regex", "choice", "lark"]

MAX_CACHED = 32
"""Compiled grammars kept per model; the least recently used are evicted first."""
MAX_COMPILE_SECONDS = 2.0
"""CPU time to compile a grammar; the limits below end most compiles long before that."""
MAX_STEP_SECONDS = 0.25
"""CPU time for the mask of one token. A request that needs more fails, because all others wait for it."""
MAX_REASON_CHARS = 200

# llguidance's messages that speak of itself or of options no request has, and what to show instead.
_REWORDED = (
    (
        r"oneOf constraints are not supported.*",
        (
            "one value might satisfy two branches of a oneOf (give each a type of its own or a property with "
            "a const of its own, or use anyOf)"
        ),
    ),
    (r"Unimplemented keys: \[(.*)\].*", r"it has keywords that vinfer does not support: \1"),
    (
        r"Resource '(.*)' is not present.*",
        r"it refers to \1, and only parts of the schema itself can be used",
    ),
    (r"Pointer '(.*)' does not exist.*", r"it refers to #\1, which does not exist"),
    (r"Invalid type: (.*)", r"\1 is not a type of JSON"),
    (r"Unknown format: (.*)", r"the format \1 is not one that vinfer knows (leave it out, or use a pattern)"),
    (r"Unsatisfiable schema: (.*)", r"no value satisfies it: \1"),
    (r"NoExtensionBias.*", "it is defined by nothing but itself"),
)
_MASK_WORD_BYTES = MASK_WORD_BITS // 8
# JSON on one line, as Python's json.dumps writes it, so that a small model cannot get stuck in white space.
JSON_FORM: JsonCompileOptions = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "lenient": False,
    "coerce_one_of": False,
}


def _limits() -> LLParserLimits:
    """Return the limits of a grammar: enough for a few thousand properties in well under a second."""
    return LLParserLimits(
        max_items_in_row=8_000,
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_lexer_states=20_000,  # up to 2 kB each
        max_grammar_size=200_000,
        # Verbose messages contain parser states, which repeat the client's text.
        verbose_errors=False,
    )


@dataclasses.dataclass(frozen=True, slots=True)
class GrammarSpec:
    """The grammar that a request contains.

    Attributes:
        text: a JSON Schema, a regular expression, a JSON array of strings, or a Lark grammar.
        param: path of the request field, for messages.
        form: the grammar that a Lark grammar calls `@form`.
    """

    kind: GrammarKind
    text: str
    param: str
    form: GrammarSpec | None = None

    @property
    def key(self) -> tuple[str, ...]:
        """What two equal grammars have in common, whichever field they come from."""
        return self.kind, self.text, *(self.form.key if self.form is not None else ())


class GrammarMatcher:
    """The position of one request in its grammar. Created on any thread; used by one thread at a time.

    Attributes:
        mask: one bit per id of the model's vocabulary, in uint32 words; set if the token may come next.

    Args:
        grammar: the compiled grammar to start from.
        min_tokens: until this many tokens are generated, `stop_token_ids` are left out of the mask as long
            as the grammar allows anything else.
    """

    def __init__(self, grammar: Grammar, *, min_tokens: int, stop_token_ids: Sequence[int]) -> None:
        self._grammar = grammar
        self._own: LLMatcher | None = None
        self._min_tokens = min_tokens
        self._stop_token_ids = tuple(stop_token_ids)
        self._ends = {*stop_token_ids, *grammar.vocabulary.eos_token_ids}
        self._num_tokens = 0
        self.mask = self._without_early_stop(grammar.mask, 0)

    def advance(self, token_ids: Sequence[int]) -> None:
        """Advance by generated tokens, none of which ended the request, and compute the next token's mask.

        Raises:
            RequestError: the grammar has become too costly; the request cannot go on.
        """
        started = time.thread_time()
        own = self._matcher()
        if own.consume_tokens(list(token_ids)):
            self._num_tokens += len(token_ids)
            mask = _mask(own, self._grammar.vocabulary, len(self.mask))
            too_slow = time.thread_time() - started > MAX_STEP_SECONDS
            if not own.is_error() and any(mask) and not too_slow:
                self.mask = self._without_early_stop(mask, self._num_tokens)
                return
        param = self._grammar.spec.param
        raise RequestError(
            f"{param} cannot be followed further than {self._num_tokens} tokens within vinfer's limits"
            f"{_reason(own)}: simplify it",
            param=param,
        )

    def forced(self, max_tokens: int) -> tuple[int, ...]:
        """Return the tokens that must come next, at most so many, none of which ends the request.

        They are those that the tokenizer makes of the text that the grammar forces.
        """
        return tuple(self._unended(self._matcher().deep_copy().compute_ff_tokens()[:max_tokens]))

    def num_allowed(self, draft: Sequence[int]) -> int:
        """Return how many tokens of a draft the grammar allows, before one that ends the answer."""
        return self._matcher().deep_copy().validate_tokens(self._unended(draft))

    def masks_along(self, draft: Sequence[int]) -> tuple[bytes, ...]:
        """Return `mask` as it will be after each token of a draft, up to one that may not come next.

        The position stays. It ends early at a token that ends the answer, or where it becomes too costly.
        """
        started = time.thread_time()
        ahead = self._matcher().deep_copy()
        masks: list[bytes] = []
        for num_tokens, token in enumerate(self._unended(draft), self._num_tokens + 1):
            if not ahead.consume_token(token):
                break
            mask = _mask(ahead, self._grammar.vocabulary, len(self.mask))
            if not any(mask) or ahead.is_error() or time.thread_time() - started > MAX_STEP_SECONDS:
                break
            masks.append(self._without_early_stop(mask, num_tokens))
        return tuple(masks)

    def _matcher(self) -> LLMatcher:
        if self._own is None:
            self._own = self._grammar.first.deep_copy()
        return self._own

    def _unended(self, token_ids: Sequence[int]) -> list[int]:
        """Return the tokens before the first one that ends the answer."""
        return list(itertools.takewhile(lambda token: token not in self._ends, token_ids))

    def _without_early_stop(self, mask: bytes, num_tokens: int) -> bytes:
        if num_tokens >= self._min_tokens:
            return mask
        later = _without(mask, self._stop_token_ids)
        return later if any(later) else mask


@dataclasses.dataclass(frozen=True, slots=True)
class Grammar:
    """A compiled grammar at its start; any thread."""

    spec: GrammarSpec
    vocabulary: GrammarVocabulary
    first: LLMatcher
    mask: bytes

    def matcher(self, *, min_tokens: int = 0, stop_token_ids: Sequence[int] = ()) -> GrammarMatcher:
        """Return a matcher for a new request; see `GrammarMatcher`."""
        return GrammarMatcher(self, min_tokens=min_tokens, stop_token_ids=stop_token_ids)


class GrammarCompiler:
    """Compiles the grammars of one model's requests, one at a time, on its own thread.

    Attributes:
        num_waiting: grammars that are being compiled, or wait for it.

    Args:
        name: the model's name, for the thread and for messages.
        vocab_size: ids that the model has; those beyond the tokenizer's are never allowed.
        vocabulary: returns the model's tokens; called on the first compile. None if the model has no end
            token: no answer could then be complete, so every grammar is refused.
    """

    def __init__(
        self,
        *,
        name: str,
        vocab_size: int,
        vocabulary: Callable[[], GrammarVocabulary] | None,
    ) -> None:
        self.num_waiting = 0
        self._name = name
        self._load_vocabulary = vocabulary
        self._mask_bytes = num_mask_words(vocab_size) * _MASK_WORD_BYTES
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"grammar-{name}")
        self._lock = threading.Lock()
        self._cache: OrderedDict[tuple[str, ...], Grammar] = OrderedDict()
        self._loaded: tuple[GrammarVocabulary, LLTokenizer] | None = None

    @property
    def num_kept(self) -> int:
        """How many compiled grammars are kept for later requests."""
        return len(self._cache)

    async def compile(self, spec: GrammarSpec) -> Grammar:
        """Return a request's grammar, compiled or cached. Called on the event loop; does not block it.

        Raises:
            RequestError: the field is not a grammar, cannot be satisfied, uses unsupported keywords, or is
                too costly; the message names the field.
        """
        grammar = self._find(spec)
        if grammar is not None:
            return grammar
        self.num_waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, self._compile, spec)
        finally:
            self.num_waiting -= 1

    def _find(self, spec: GrammarSpec) -> Grammar | None:
        with self._lock:
            grammar = self._cache.get(spec.key)
            if grammar is None:
                return None
            self._cache.move_to_end(spec.key)
        return dataclasses.replace(grammar, spec=spec)

    def _compile(self, spec: GrammarSpec) -> Grammar:
        """Compile on the compiler's thread, unless another request has just compiled the same grammar."""
        grammar = self._find(spec)
        if grammar is not None:
            return grammar
        if self._loaded is None:
            self._loaded = self._load(spec)
        vocabulary, tokenizer = self._loaded
        started = time.thread_time()
        try:
            first = LLMatcher(tokenizer, _source(spec), log_level=0, limits=_limits())
        except ValueError as error:
            raise _refused(spec, str(error)) from None
        mask = b"" if first.is_error() else _mask(first, vocabulary, self._mask_bytes)
        if first.is_error():
            raise _refused(spec, first.get_error())
        if not any(mask):
            raise _refused(spec, "no answer satisfies it")
        if time.thread_time() - started > MAX_COMPILE_SECONDS:
            raise _refused(spec, f"it takes longer than {MAX_COMPILE_SECONDS:g} s to compile")
        grammar = Grammar(spec, vocabulary, first, mask)
        with self._lock:
            self._cache[spec.key] = grammar
            if len(self._cache) > MAX_CACHED:
                self._cache.popitem(last=False)
        return grammar

    def _load(self, spec: GrammarSpec) -> tuple[GrammarVocabulary, LLTokenizer]:
        if self._load_vocabulary is None:
            raise RequestError(
                f"{spec.param}: model {self._name} has no end token, so no answer would be complete: "
                "leave it out",
                param=spec.param,
            )
        vocabulary = self._load_vocabulary()
        tokenizer = LLTokenizer(
            cast("TokenizerWrapper", vocabulary),
            n_vocab=len(vocabulary.tokens),
            eos_token=list(vocabulary.eos_token_ids),
        )
        return vocabulary, tokenizer


def _source(spec: GrammarSpec) -> str:
    """Write the grammar for llguidance."""
    if spec.form is not None:
        return json.dumps({"grammars": [_part(spec), {**_part(spec.form), "name": "form"}]})
    if spec.kind in ("json_schema", "regex"):
        return json.dumps({"grammars": [_part(spec)]})
    return str(_part(spec)["lark_grammar"])


def _part(spec: GrammarSpec) -> dict[str, object]:
    """Write one of llguidance's grammars, which can call each other by name."""
    if spec.kind == "lark":
        return {"lark_grammar": spec.text}
    if spec.kind == "choice":
        # JSON strings are valid Lark strings.
        choices = (json.dumps(choice, ensure_ascii=False) for choice in json.loads(spec.text))
        return {"lark_grammar": f"start: {' | '.join(choices)}"}
    source = (
        LLMatcher.grammar_from_regex(spec.text)
        if spec.kind == "regex"
        else LLMatcher.grammar_from_json_schema(spec.text, overrides=JSON_FORM)
    )
    (part,) = json.loads(source)["grammars"]
    return dict(part)


def _mask(matcher: LLMatcher, vocabulary: GrammarVocabulary, num_bytes: int) -> bytes:
    """Return the mask of the next token over the model's ids; llguidance's mask ends with the tokenizer's.

    Forced text must be tokenized as the tokenizer would. llguidance ensures that if all tokens end within
    the forced text. If a token can extend past it (` "A` past ` "`), llguidance also allows a lone space,
    after which models tend to write a number. A small model forced to begin a string there writes endless
    nonsense.
    """
    mask = matcher.compute_bitmask()[:num_bytes].ljust(num_bytes, b"\0")
    if int.from_bytes(mask).bit_count() < 2:
        return mask
    return _without(mask, vocabulary.misspellings(matcher.compute_ff_bytes()))


def _without(mask: bytes, token_ids: Sequence[int]) -> bytes:
    if not token_ids:
        return mask
    words = bytearray(mask)
    for token_id in token_ids:
        words[token_id // 8] &= ~(1 << token_id % 8) & 0xFF
    return bytes(words)


def _refused(spec: GrammarSpec, reason: str) -> RequestError:
    return RequestError(
        f"{spec.param} cannot be enforced: {_first_line(reason)}: change it", param=spec.param
    )


def _reason(matcher: LLMatcher) -> str:
    return f" ({_first_line(matcher.get_error())})" if matcher.is_error() else ""


def _first_line(message: str) -> str:
    """Return the reason in one short printable line; regex errors state it after a drawing of the pattern."""
    lines = [line.strip() for line in message.splitlines()]
    stated = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    text = (stated or lines or ["llguidance gives no reason"])[0]
    for theirs, ours in _REWORDED:
        text = re.sub(theirs, ours, text, count=1, flags=re.DOTALL)
    text = text if len(text) <= MAX_REASON_CHARS else text[:MAX_REASON_CHARS] + "..."
    return ascii(text)[1:-1]
