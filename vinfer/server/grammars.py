"""From checked fields to a compiled grammar, off the event loop."""

from __future__ import annotations

from vinfer.engine.grammar import Grammar
from vinfer.server.model_table import ServedModel
from vinfer.server.protocol import SamplingFields
from vinfer.server.services import Services
from vinfer.server.structured_outputs import grammar_spec


async def compile_grammar(services: Services, fields: SamplingFields, model: ServedModel) -> Grammar | None:
    """Return what binds the answer; None where nothing does.

    Raises:
        RequestError: names the field that cannot be enforced.
    """
    if fields.response_format is None and fields.structured_outputs is None:
        return None
    spec = await services.in_worker(grammar_spec, fields.response_format, fields.structured_outputs)
    return None if spec is None else await model.grammars.compile(spec)
