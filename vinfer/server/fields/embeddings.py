"""The applied fields of `/v1/embeddings`, typed and limited.

Like `chat`, and on the same threads. `routes.embeddings` and `generate.prompts` check what depends on the
model.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from vinfer.server.fields.body_model import Body
from vinfer.server.fields.completions import prompts_schema
from vinfer.server.fields.form import RequestForm
from vinfer.server.fields.sampling import MAX_INT32
from vinfer.server.fields.treatment import EMBEDDING_OTHERS


def _not_zero(num_tokens: int) -> int:
    if num_tokens == 0:
        raise PydanticCustomError("truncation", "is 0, which leaves nothing; send -1 for what fits")
    return num_tokens


class EmbeddingFields(Body):
    """`POST /v1/embeddings`; `generate.prompts` parses `input`."""

    model: str = Field(min_length=1)
    input: Annotated[Any, WithJsonSchema(prompts_schema({"type": "string", "minLength": 1}))]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, le=MAX_INT32)
    truncate_prompt_tokens: (
        Annotated[
            int,
            Field(ge=-1, le=MAX_INT32, json_schema_extra={"not": {"const": 0}}),
            AfterValidator(_not_zero),
        ]
        | None
    ) = Field(
        None, description="Keep only the last tokens of each input: this many, or with -1 as many as fit."
    )


EMBEDDING = RequestForm(EmbeddingFields, EMBEDDING_OTHERS)
