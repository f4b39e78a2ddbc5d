"""The applied fields of `/v1/embeddings`, typed and bounded.

As `protocol`, and on the same threads; what depends on the model is checked in `embeddings` and `prompts`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from vinfer.server.body_model import Body
from vinfer.server.fields import EMBEDDING_FIELDS
from vinfer.server.protocol import MAX_INT32, RequestForm, prompts_schema


class EmbeddingFields(Body):
    """`POST /v1/embeddings`; `input` is taken apart in `prompts`."""

    model: str = Field(min_length=1)
    input: Annotated[Any, WithJsonSchema(prompts_schema({"type": "string", "minLength": 1}))]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, le=MAX_INT32)


EMBEDDING = RequestForm(EmbeddingFields, EMBEDDING_FIELDS)
