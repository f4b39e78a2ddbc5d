"""From checked fields to a compiled grammar, off the event loop; and the compiler of a model's grammars."""

from __future__ import annotations

from collections.abc import Sequence

from vinfer.engine.grammar import Grammar, GrammarCompiler
from vinfer.engine.grammar_vocabulary import GrammarVocabulary
from vinfer.server.model_table import ServedModel
from vinfer.server.protocol import SamplingFields
from vinfer.server.services import Services
from vinfer.server.structured_outputs import grammar_spec
from vinfer.server.token_bytes import token_bytes
from vinfer.text.tokenizer import Tokenizer


def grammar_compiler(
    name: str, tokenizer: Tokenizer, *, vocab_size: int, eos_token_ids: Sequence[int]
) -> GrammarCompiler:
    """Make the compiler of one model; the vocabulary is read when the first grammar comes.

    Args:
        vocab_size: of the model, at least the tokenizer's.
    """
    ends = [token_id for token_id in eos_token_ids if token_id < tokenizer.vocab_size]

    def vocabulary() -> GrammarVocabulary:
        return GrammarVocabulary(
            [token_bytes(tokenizer, token_id) for token_id in range(tokenizer.vocab_size)],
            special_ids=tokenizer.special_ids,
            eos_token_ids=ends,
            encode=tokenizer.encode_plain,
        )

    return GrammarCompiler(name=name, vocab_size=vocab_size, vocabulary=vocabulary if ends else None)


async def compile_grammar(services: Services, fields: SamplingFields, model: ServedModel) -> Grammar | None:
    """Return what binds the answer; None where nothing does.

    Raises:
        RequestError: names the field that cannot be enforced.
    """
    if fields.response_format is None and fields.structured_outputs is None:
        return None
    spec = await services.in_worker(grammar_spec, fields.response_format, fields.structured_outputs)
    return None if spec is None else await model.grammars.compile(spec)
