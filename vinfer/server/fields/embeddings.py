"""The applied fields of `/v1/embeddings`, typed and limited.

Like `chat`, and on the same threads. `routes.embeddings` and `generate.prompts` check what depends on the
model.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from vinfer.server.fields.body_model import Body
from vinfer.server.fields.completions import prompts_schema
from vinfer.server.fields.form import RequestForm
from vinfer.server.fields.sampling import MAX_INT32
from vinfer.server.fields.treatment import EMBEDDING_FIELDS


class EmbeddingFields(Body):
    """`POST /v1/embeddings`; `generate.prompts` parses `input`."""

    model: str = Field(min_length=1)
    input: Annotated[Any, WithJsonSchema(prompts_schema({"type": "string", "minLength": 1}))]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, le=MAX_INT32)


EMBEDDING = RequestForm(EmbeddingFields, EMBEDDING_FIELDS)
