"""Grammars with a vocabulary of bytes: what they allow, how they end, what is refused, and their limits."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from vinfer.engine import grammar as grammar_module
from vinfer.engine.grammar import Grammar, GrammarCompiler, GrammarKind, GrammarSpec
from vinfer.engine.grammar_vocabulary import GrammarVocabulary
from vinfer.errors import RequestError

NUM_BYTES = 256
CONTROL, EOS, OTHER_EOS = 256, 257, 258
ABC, AB = 259, 260
NUM_TOKENS = 261
VOCAB_SIZE = 300


def vocabulary() -> GrammarVocabulary:
    """Return tokens whose ids are the bytes of UTF-8, a control token, two end tokens and two words."""
    return GrammarVocabulary(
        [bytes((byte,)) for byte in range(NUM_BYTES)] + [b"<c>", b"</s>", b"</t>", b"abc", b"ab"],
        special_ids={CONTROL, EOS, OTHER_EOS},
        eos_token_ids=(EOS, OTHER_EOS),
        encode=lambda text: list(text.encode()),
    )


def make_compiler(vocab_size: int = VOCAB_SIZE) -> GrammarCompiler:
    return GrammarCompiler(name="tiny", vocab_size=vocab_size, vocabulary=vocabulary)


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return make_compiler()


def compiled(compiler: GrammarCompiler, kind: GrammarKind, text: Any, param: str = "the.field") -> Grammar:
    text = text if isinstance(text, str) else json.dumps(text)
    return asyncio.run(compiler.compile(GrammarSpec(kind, text, param)))


def allowed(mask: bytes) -> set[int]:
    """Return the ids whose bits are set."""
    return {place for place in range(8 * len(mask)) if mask[place // 8] >> place % 8 & 1}


def texts(grammar: Grammar) -> set[str]:
    """Return all answers of a grammar that has only a few, spelled byte by byte."""
    found = set()

    def follow(token_ids: list[int]) -> None:
        matcher = grammar.matcher()
        if token_ids:
            matcher.advance(token_ids)
        for token in allowed(matcher.mask):
            if token == EOS:
                found.add(bytes(token_ids).decode())
            elif token < NUM_BYTES:
                follow([*token_ids, token])

    follow([])
    return found


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("choice", ["red", "green", 'a "quoted" one', "ü\n\\"], {"red", "green", 'a "quoted" one', "ü\n\\"}),
        ("choice", ["re", "red"], {"re", "red"}),
        ("regex", "(a|b){1,2}", {"a", "b", "aa", "ab", "ba", "bb"}),
        ("regex", "^x?$", {"", "x"}),
        ("lark", 'start: "x" y? | "z"\ny: "1" | "2"', {"x", "x1", "x2", "z"}),
        ("json_schema", {"enum": ["a", 1, None]}, {'"a"', "1", "null"}),
        (
            "json_schema",
            {
                "type": "object",
                "properties": {"b": {"type": "boolean"}, "a": {"const": [1, 2]}},
                "required": ["b", "a"],
                "additionalProperties": False,
            },
            {'{"b": true, "a": [1, 2]}', '{"b": false, "a": [1, 2]}'},
        ),
    ],
)
def test_a_grammar_has_exactly_these_answers(
    compiler: GrammarCompiler, kind: GrammarKind, text: Any, expected: set[str]
) -> None:
    assert texts(compiled(compiler, kind, text)) == expected


def test_a_complete_answer_can_only_end_and_every_end_token_ends_it(compiler: GrammarCompiler) -> None:
    matcher = compiled(compiler, "regex", "xy|xz").matcher()
    assert allowed(matcher.mask) == {ord("x")}
    matcher.advance(list(b"x"))
    assert allowed(matcher.mask) == set(b"yz")
    matcher.advance(list(b"y"))
    assert allowed(matcher.mask) == {EOS, OTHER_EOS}


def test_control_tokens_and_ids_beyond_the_tokenizer_are_never_text(compiler: GrammarCompiler) -> None:
    matcher = compiled(compiler, "regex", "(.|\n)*").matcher()
    # Bytes that begin a UTF-8 character, the words, and the end tokens.
    assert allowed(matcher.mask) == {*range(0x80), *range(0xC2, 0xF5), ABC, AB, EOS, OTHER_EOS}
    # The spelling of a control token is plain text, whether the grammar forces it or only allows it.
    assert texts(compiled(compiler, "choice", ["<c>"])) == {"<c>"}
    assert texts(compiled(compiler, "choice", ["<c>", "</s>"])) == {"<c>", "</s>"}
    assert texts(compiled(compiler, "json_schema", {"const": "</s>"})) == {'"</s>"'}


def test_matchers_of_one_grammar_are_independent(compiler: GrammarCompiler) -> None:
    grammar = compiled(compiler, "choice", ["xx", "xy"])
    one, other = grammar.matcher(), grammar.matcher()
    one.advance(list(b"x"))
    one.advance(list(b"y"))
    assert allowed(other.mask) == {ord("x")}
    other.advance(list(b"x"))
    assert allowed(other.mask) == set(b"xy")
    assert allowed(one.mask) == {EOS, OTHER_EOS}


def test_min_tokens_keeps_the_end_away_as_long_as_the_grammar_goes_on(compiler: GrammarCompiler) -> None:
    ends = (EOS, OTHER_EOS, ord("z"))
    matcher = compiled(compiler, "regex", "[xz]{1,4}").matcher(min_tokens=3, stop_token_ids=ends)
    seen = [allowed(matcher.mask)]
    for _ in range(4):
        matcher.advance(list(b"x"))
        seen.append(allowed(matcher.mask))
    goes_on, may_end, over = {ord("x")}, {*b"xz", EOS, OTHER_EOS}, {EOS, OTHER_EOS}
    assert seen == [goes_on, goes_on, goes_on, may_end, over]
    # A complete answer may end, however short it is.
    matcher = compiled(compiler, "regex", "x").matcher(min_tokens=9, stop_token_ids=ends)
    matcher.advance(list(b"x"))
    assert allowed(matcher.mask) == over


def test_it_looks_ahead_without_going_there(compiler: GrammarCompiler) -> None:
    def masks(start: bytes, along: Sequence[int]) -> list[bytes]:
        matcher = compiled(compiler, "regex", "one (two|three) [xz]{1,4}").matcher(
            min_tokens=10, stop_token_ids=(EOS, OTHER_EOS, ord("z"))
        )
        matcher.advance(list(start))
        ahead = matcher.masks_along(along)
        # One by one, it comes to the same masks.
        seen = []
        for token in along[: len(ahead)]:
            matcher.advance([token])
            seen.append(matcher.mask)
        assert list(ahead) == seen
        return seen

    assert len(masks(b"one t", b"wo xxx")) == 6
    assert len(masks(b"one t", b"we xxx")) == 1
    assert masks(b"one t", b"y") == masks(b"one t", b"") == []
    # No mask follows the end of an answer: here z, because it is a stop token, and the end token.
    assert len(masks(b"one two ", b"xzx")) == 1
    assert len(masks(b"one two xxx", (ord("x"), EOS, ord("x")))) == 1


def test_it_knows_how_far_a_draft_is_allowed(compiler: GrammarCompiler) -> None:
    matcher = compiled(compiler, "regex", "one (two|three)").matcher()
    matcher.advance(list(b"on"))
    drafts = (b"e two", b"e tx", b"x", b"", b"e two!", (*b"e two", EOS))
    assert [matcher.num_allowed(draft) for draft in drafts] == [5, 3, 0, 0, 5, 5]
    assert allowed(matcher.mask) == {ord("e")}


@pytest.mark.parametrize(
    ("start", "forced"), [(b"", b"one t"), (b"one t", b""), (b"one tw", b"o "), (b"one two xxxx", b"")]
)
def test_it_knows_what_must_come_next_but_never_the_end(
    compiler: GrammarCompiler, start: bytes, forced: bytes
) -> None:
    matcher = compiled(compiler, "regex", "one (two|three) [xz]{1,4}").matcher()
    matcher.advance(list(start))
    mask = matcher.mask
    assert matcher.forced(9) == tuple(forced)
    assert matcher.forced(1) == tuple(forced[:1])
    assert matcher.mask == mask


def test_a_token_that_the_grammar_does_not_allow_ends_the_request(compiler: GrammarCompiler) -> None:
    matcher = compiled(compiler, "regex", "xy").matcher()
    matcher.advance(list(b"x"))
    with pytest.raises(RequestError, match=r"the\.field cannot be followed further than 1 tokens") as caught:
        matcher.advance(list(b"x"))
    assert caught.value.param == "the.field"


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


BAD: dict[str, tuple[GrammarKind, Any, str]] = {
    "type": ("json_schema", {"type": "strin"}, "strin is not a type of JSON"),
    "not": ("json_schema", {"not": {"type": "string"}}, 'keywords that vinfer does not support: "not"'),
    "uniqueItems": ("json_schema", {"type": "array", "uniqueItems": True}, "uniqueItems"),
    "lenient": (
        "json_schema",
        {"not": {}, "x-guidance": {"lenient": True}},
        'keywords that vinfer does not support: "not"',
    ),
    "format": ("json_schema", {"type": "string", "format": "xyz"}, "the format xyz is not one"),
    "pattern": ("json_schema", {"type": "string", "pattern": "^(?=a)b"}, "look-around"),
    "unsatisfiable": ("json_schema", {"type": "string", "enum": [1]}, "no value satisfies it"),
    "itself": ("json_schema", {"$ref": "#"}, "defined by nothing but itself"),
    "another host": ("json_schema", {"$ref": "http://127.0.0.1:9/x"}, "only parts of the schema itself"),
    "a file": ("json_schema", {"$ref": "file:///etc/passwd"}, "only parts of the schema itself"),
    "too deep": ("json_schema", nested(200), "recursion limit exceeded"),
    "no JSON": ("json_schema", "{", "EOF while parsing"),
    "group": ("regex", "(a", "unclosed group"),
    "back reference": ("regex", r"(a)\1", "backreferences are not supported"),
    "deep groups": ("regex", "(" * 5000 + "a" + ")" * 5000, "nest"),
    "unknown rule": ("lark", "start: foo", 'unknown name: "foo"'),
    "no rule": ("lark", "", "Empty grammar"),
    "no end": ("lark", "start: a\na: b\nb: a", "defined by nothing but itself"),
    "deep rule": ("lark", "start: " + "(" * 3000 + '"a"' + ")" * 3000, "too deeply nested"),
    "costly multiple": ("json_schema", {"type": "integer", "multipleOf": 999999937}, "fuel exhausted"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_grammar_is_refused_in_words(compiler: GrammarCompiler, name: str) -> None:
    kind, text, reason = BAD[name]
    with pytest.raises(RequestError) as caught:
        compiled(compiler, kind, text)
    message = caught.value.message
    assert caught.value.param == "the.field"
    assert message.startswith("the.field cannot be enforced: ")
    assert reason in message
    assert len(message) < 300
    assert message.isprintable()


# Grammars that take exponential or quadratic time in some engines.
HOSTILE: dict[str, tuple[GrammarKind, Any]] = {
    "nested repetition": ("regex", "((a{0,100}){0,100}){0,100}"),
    "many prefixes": ("regex", "(.*[ab].*[cd].*){12}"),
    "exponential automaton": ("regex", "[ab]*a[ab]{200}"),
    "many dots": ("regex", "(.*a){20}"),
    "long": ("regex", "x" * 16_000),
    "wide": ("regex", "a|" * 8_000 + "b"),
    "doubling": (
        "lark",
        "start: x0\n" + "".join(f"x{i}: x{i + 1} x{i + 1}\n" for i in range(40)) + 'x40: "a"',
    ),
    "ambiguous": ("lark", 'start: s\ns: s s s | "a" | s s'),
    "equal alternatives": ("lark", "start: " + '"a" | ' * 2_700 + '"b"'),
    "counted": ("lark", 'start: "a"{100000}'),
    "500 optional": (
        "json_schema",
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(500)}},
    ),
    "3000 optional": ("json_schema", {"type": "object", "properties": {f"p{i}": {} for i in range(3000)}}),
    "500 of any": (
        "json_schema",
        {"anyOf": [{"type": "object", "properties": {f"p{i}": {"type": "string"}}} for i in range(500)]},
    ),
    "300 of all": (
        "json_schema",
        {"allOf": [{"properties": {f"p{i}": {"type": "string", "pattern": "a*b"}}} for i in range(300)]},
    ),
    "huge minimum": ("json_schema", {"type": "array", "items": {"type": "integer"}, "minItems": 10**9}),
    "huge string": ("json_schema", {"type": "string", "minLength": 10**9}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_grammar_costs_little(compiler: GrammarCompiler, name: str) -> None:
    """The compile and every step end soon, with an answer or an error that names the field."""
    slowest_step = 0.0
    refusals = []
    choose = random.Random(0)
    started = time.process_time()
    try:
        matcher = compiled(compiler, *HOSTILE[name]).matcher()
        for _ in range(200):
            token = choose.choice(sorted(allowed(matcher.mask)))
            if token in (EOS, OTHER_EOS):
                break
            step_started = time.thread_time()
            matcher.advance([token])
            slowest_step = max(slowest_step, time.thread_time() - step_started)
    except RequestError as error:
        refusals.append(error.param)
    assert refusals in ([], ["the.field"])
    assert slowest_step <= grammar_module.MAX_STEP_SECONDS
    assert time.process_time() - started < 5


def test_a_schema_of_500_properties_is_no_hostile_one(compiler: GrammarCompiler) -> None:
    matcher = compiled(compiler, *HOSTILE["500 optional"]).matcher()
    for token in b'{"p499": "x"}':
        matcher.advance([token])
    assert allowed(matcher.mask) == {EOS, OTHER_EOS}


def test_a_slow_step_ends_the_request(compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    matcher = compiled(compiler, "regex", "x*").matcher()
    matcher.advance(list(b"x"))
    monkeypatch.setattr(grammar_module, "MAX_STEP_SECONDS", -1.0)
    with pytest.raises(RequestError, match=r"the\.field cannot be followed further than 2 tokens"):
        matcher.advance(list(b"x"))


def test_a_slow_compile_is_refused_and_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = make_compiler()
    with monkeypatch.context() as patch:
        patch.setattr(grammar_module, "MAX_COMPILE_SECONDS", -1.0)
        with pytest.raises(RequestError, match="it takes longer than -1 s to compile"):
            compiled(compiler, "regex", "x")
    assert texts(compiled(compiler, "regex", "x")) == {"x"}


def test_a_grammar_is_compiled_once_and_the_oldest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_module, "MAX_CACHED", 2)
    compiler = make_compiler()
    first = compiled(compiler, "regex", "x", "one.field")
    again = compiled(compiler, "regex", "x", "another.field")
    assert again.first is first.first
    assert again.spec.param == "another.field"
    # The same text of another kind is another grammar.
    assert compiled(compiler, "choice", '["x"]').first is not first.first
    # Used again, it is the most recent one.
    assert compiled(compiler, "regex", "x").first is first.first
    compiled(compiler, "regex", "y")
    assert compiled(compiler, "regex", "x").first is first.first
    compiled(compiler, "regex", "z")
    compiled(compiler, "regex", "w")
    assert compiled(compiler, "regex", "x").first is not first.first


def test_the_event_loop_goes_on_while_a_grammar_is_compiled() -> None:
    may_compile = threading.Event()

    def slow_vocabulary() -> GrammarVocabulary:
        assert may_compile.wait(30)
        return vocabulary()

    async def main() -> Grammar:
        compiler = GrammarCompiler(name="tiny", vocab_size=VOCAB_SIZE, vocabulary=slow_vocabulary)
        waiting = asyncio.create_task(compiler.compile(GrammarSpec("regex", "x", "the.field")))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not waiting.done()
        # Only reached if the event loop is running.
        may_compile.set()
        return await waiting

    assert texts(asyncio.run(main())) == {"x"}


def test_a_model_without_an_end_token_constrains_nothing() -> None:
    compiler = GrammarCompiler(name="tiny", vocab_size=VOCAB_SIZE, vocabulary=None)
    with pytest.raises(RequestError, match=r"the\.field: model tiny has no end token"):
        compiled(compiler, "regex", "x")


@pytest.mark.parametrize("vocab_size", [NUM_TOKENS, 288, 289, 300, 320, 1000])
@pytest.mark.parametrize("num_more", [0, 288 - NUM_TOKENS])
def test_a_mask_is_as_long_as_the_vocabulary_of_the_model(vocab_size: int, num_more: int) -> None:
    """The mask of llguidance is one word longer if the tokenizer's ids fill the last word."""

    def larger() -> GrammarVocabulary:
        return GrammarVocabulary(
            [*vocabulary().tokens, *(b"more%d" % i for i in range(num_more))],
            special_ids=(),
            eos_token_ids=(EOS, OTHER_EOS),
            encode=lambda text: list(text.encode()),
        )

    vocab_size = max(vocab_size, NUM_TOKENS + num_more)
    compiler = GrammarCompiler(name="tiny", vocab_size=vocab_size, vocabulary=larger)
    matcher = compiled(compiler, "regex", "xy").matcher()
    for token in b"xy":
        assert len(matcher.mask) == 4 * -(-vocab_size // 32)
        matcher.advance([token])
    assert allowed(matcher.mask) == {EOS, OTHER_EOS}


def refuse(text: str) -> list[int]:
    raise RequestError("text hides a special token")


def spelling(encode: Callable[[str], list[int]], *words: bytes) -> GrammarVocabulary:
    """Return the vocabulary of these tests, extended by words, with its own tokenizer."""
    ours = vocabulary()
    return GrammarVocabulary(
        [*ours.tokens, *words],
        special_ids=ours.special_token_ids,
        eos_token_ids=ours.eos_token_ids,
        encode=encode,
    )


def test_text_that_must_follow_is_spelled_by_the_tokenizer_where_that_keeps_its_bytes() -> None:
    assert spelling(lambda text: [AB, ord("c")])("abc") == [AB, ord("c")]
    for encode in (refuse, lambda text: [ord(" "), ABC], lambda text: []):
        assert spelling(encode)("abc<c>ab") == [ABC, *b"<c>", AB]
        assert spelling(encode)("") == []


def test_text_that_must_follow_is_not_begun_by_other_tokens() -> None:
    spelled = spelling(lambda text: [ABC, *text.encode()[3:]] if text.startswith("abc") else [*text.encode()])
    assert spelled.misspellings(b"abc") == [ord("a"), AB]
    assert spelled.misspellings(b"abcx") == [ord("a"), AB]
    assert spelled.misspellings(b"abx") == [AB]
    assert spelled.misspellings(b"") == spelled.misspellings(b"a") == []
    a_umlaut = "ä".encode()
    assert spelled.misspellings(b"ab" + a_umlaut[:1]) == [AB]
    assert spelled.misspellings(a_umlaut[:1]) == spelled.misspellings(a_umlaut[1:] + b"abc") == []
    assert spelling(lambda text: [AB, *text.encode()[2:]]).misspellings(b"abc") == [ord("a")]


QUOTE, QUOTE_X = NUM_TOKENS, NUM_TOKENS + 1
LIST_OF_TEXT = {"prefixItems": [{"const": 1}, {"type": "string"}], "items": False, "minItems": 2}


def test_a_model_that_must_write_a_string_is_not_let_begin_with_the_space_of_a_number() -> None:
    """The tokenizer begins a number with a lone space, but never a string."""
    spelled = spelling(
        lambda text: [QUOTE, *text.encode()[2:]] if text[:2] == ' "' else [*text.encode()], b' "', b' "x'
    )
    compiler = GrammarCompiler(name="tiny", vocab_size=VOCAB_SIZE, vocabulary=lambda: spelled)
    matcher = compiled(compiler, "json_schema", {"type": "array", **LIST_OF_TEXT}).matcher()
    matcher.advance(list(b"[1,"))
    assert allowed(matcher.mask) == {QUOTE, QUOTE_X}
    either = {**LIST_OF_TEXT, "prefixItems": [{"const": 1}, {"type": ["string", "null"]}]}
    matcher = compiled(compiler, "json_schema", {"type": "array", **either}).matcher()
    matcher.advance(list(b"[1,"))
    assert allowed(matcher.mask) == {ord(" "), QUOTE, QUOTE_X}


def test_text_that_no_tokens_spell_is_refused() -> None:
    lacking = GrammarVocabulary([b"a", b"</s>"], special_ids=(), eos_token_ids=(1,), encode=refuse)
    with pytest.raises(ValueError, match="no token begins with byte 0x62"):
        lacking("ab")
    compiler = GrammarCompiler(name="tiny", vocab_size=2, vocabulary=lambda: lacking)
    with pytest.raises(RequestError, match=r"the\.field cannot be enforced"):
        compiled(compiler, "regex", "ab")
