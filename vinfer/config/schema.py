"""The YAML's blocks as frozen pydantic models: names, defaults, limits and which values must fit together.

The table in docs/config.md and the JSON Schema are generated from the descriptions of the fields. Plain data,
built on the main thread before anything heavy starts, and never changed afterwards. This module does not read
files or the environment (`load` does), derives no shapes (`shapes` does) and knows nothing about devices: a
mesh that no machine could hold is refused later, by the plan.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydantic_core.core_schema import ValidationInfo

from vinfer.config.block import MAX_INT32, Block, Count, LocalPath, printable, refused
from vinfer.config.sampling import SamplingConfig
from vinfer.config.server import ServerConfig

ALL_REMAINING_DEVICES = -1


TemplateKwargType = Literal["boolean", "integer", "number", "string"]

_TEMPLATE_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
# Variables that vinfer itself passes to a template, or arguments of its renderer.
_OUR_VARIABLES = {
    *("messages", "conversation", "tools", "documents", "add_generation_prompt", "continue_final_message"),
    *("tokenize", "chat_template", "reasoning_effort"),
}
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")


def default_cache_dir(environ: Mapping[str, str]) -> Path:
    """Return the default of `cache_dir`: `$XDG_CACHE_HOME/vinfer`, or else `~/.cache/vinfer`."""
    # The XDG specification says to ignore a relative value.
    xdg = environ.get("XDG_CACHE_HOME", "")
    base = (
        Path(xdg) if xdg.startswith("/") else Path(environ.get("HOME") or os.path.expanduser("~")) / ".cache"
    )
    return base / "vinfer"


def _not_zero(value: int) -> int:
    if value == 0:
        raise refused(((), "is 0; must be at least 1, or -1 for all remaining devices"))
    return value


def _one_as_list(value: object) -> object:
    """Let `64` stand for `[64]` and one mapping for a list of one."""
    return value if value is None or isinstance(value, (list, tuple)) else [value]


def _one_or_list(schema: dict[str, Any]) -> None:
    """Declare in the JSON Schema what `_one_as_list` accepts."""
    array, *rest = schema.pop("anyOf", None) or [{k: schema.pop(k) for k in ("type", "items", "minItems")}]
    schema["anyOf"] = [array["items"], array, *rest]


_Axis = Annotated[int, Field(ge=1, le=65536)]


class MeshConfig(Block):
    """Device mesh: number of devices along each axis."""

    dp: _Axis = Field(default=1, description="Data parallel: splits the slots; must divide num_slots.")
    fsdp: _Axis = Field(
        default=1, description="Fully sharded: splits the weights and gathers them where they are used."
    )
    ep: _Axis = Field(default=1, description="Expert parallel: splits the experts.")
    tp: Annotated[int, AfterValidator(_not_zero)] = Field(
        default=ALL_REMAINING_DEVICES,
        ge=-1,
        le=65536,
        json_schema_extra={"not": {"const": 0}},
        description="Tensor parallel: splits heads and weights; -1 takes all remaining devices.",
    )
    sp: _Axis = Field(default=1, description="Sequence parallel: splits the positions.")


class VisionConfig(Block):
    """One compiled image shape."""

    batch_size: int = Field(default=1, ge=1, le=4096, description="Images encoded in one dispatch.")
    channels: int = Field(default=3, ge=1, le=16, description="Color channels per image.")
    height: int = Field(ge=1, le=16384, description="Image height in pixels.")
    width: int = Field(ge=1, le=16384, description="Image width in pixels.")


class PrecompileConfig(Block):
    """Prefill shapes to compile: every combination of the listed batch sizes and lengths."""

    batch_size: Annotated[tuple[Count, ...], BeforeValidator(_one_as_list)] = Field(
        default=(1,),
        min_length=1,
        strict=False,
        json_schema_extra=_one_or_list,
        description="Prompts prefilled in one dispatch; one number or a list, each at most num_slots.",
    )
    prefill_length: Annotated[tuple[Count, ...] | None, BeforeValidator(_one_as_list)] = Field(
        default=None,
        min_length=1,
        strict=False,
        json_schema_extra=_one_or_list,
        description="Padded prompt lengths in tokens; one number or a list, each at most max_model_len. "
        "Longer prompts are split into chunks. Null: 64, 256 and 1024, up to max_model_len; only 256 if "
        "deterministic is true.",
    )
    vision: Annotated[tuple[VisionConfig, ...] | None, BeforeValidator(_one_as_list)] = Field(
        default=None,
        min_length=1,
        strict=False,
        json_schema_extra=_one_or_list,
        description="Image shapes: one or a list. Only for task image-text.",
    )


class KVCacheConfig(Block):
    """Memory of the KV cache: one of these, or null for what fits."""

    bytes: int | None = Field(
        default=None, ge=1, le=2**50, description="Bytes on each device for the pages of the KV cache."
    )
    pages: Count | None = Field(
        default=None,
        description="Pages of the KV cache, over all dp shards: 32 tokens each on a CPU, else 128.",
    )
    memory_fraction: float | None = Field(
        default=None, gt=0, le=1, description="Part of a device's memory for the pages of the KV cache."
    )

    @model_validator(mode="after")
    def _has_one_size(self) -> KVCacheConfig:
        stated = [name for name in ("bytes", "pages", "memory_fraction") if getattr(self, name) is not None]
        if len(stated) > 1:
            raise refused(((stated[1],), f"is set, and so is {stated[0]}: keep one of them"))
        return self


class SpeculationConfig(Block):
    """Drafts from earlier tokens of the same request."""

    ngram: int = Field(
        default=3,
        ge=1,
        le=16,
        description="A draft is what followed the last so many tokens where they stood before; of fewer, "
        "if they are new.",
    )
    tokens: int = Field(default=4, ge=1, le=64, description="Tokens of a draft, which one dispatch verifies.")


class ModelConfig(Block):
    """One served model."""

    name: str = Field(description="Id of the model in the API.")
    source: Annotated[str, AfterValidator(printable)] = Field(
        min_length=1,
        description="Hub id, directory, file.gguf, package:module/file or bundle directory. "
        "Paths are relative to the YAML file.",
    )
    revision: str | None = Field(
        default=None, min_length=1, description="Hub revision: branch, tag or commit; only for a hub id."
    )
    task: Literal["text", "image-text"] = Field(default="text", description="What prompts may contain.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="bfloat16", description="Data type of weights, KV cache and compute."
    )
    mesh: MeshConfig = Field(default=MeshConfig(), description="Device mesh.")
    max_model_len: Count | None = Field(
        default=None,
        description="Longest prompt plus output, in tokens. Null: as many as the checkpoint supports, or as "
        "the KV cache holds if that is less. With rope type longrope or dynamic, as many as the checkpoint "
        "supported before it was extended.",
    )
    num_slots: int = Field(default=64, ge=1, le=4096, description="Requests decoded together.")
    kv_cache: KVCacheConfig = Field(
        default=KVCacheConfig(),
        description="Memory of the KV cache. By default on accelerators, what weights and programs leave; on "
        "a CPU the least of num_slots times max_model_len, 4 GiB and a quarter of the process's memory.",
    )
    prefix_cache: Literal["per_key", "shared", "off"] = Field(
        default="per_key",
        description="Which requests reuse the pages of equal beginnings of prompts: those with the same API "
        "key, all, or none but the choices of one request.",
    )
    streaming_chunks: int = Field(
        default=8,
        ge=1,
        le=1024,
        description="Most decode steps per dispatch; fewer stream sooner, more are cheaper.",
    )
    max_queue: int = Field(
        default=64,
        ge=1,
        le=65536,
        description="Most requests that may wait for a slot; further ones get a 429 with Retry-After.",
    )
    max_queue_per_key: Count | None = Field(
        default=None,
        description="Most of them with one API key. Null: half of max_queue if there are several keys.",
    )
    max_running_per_key: Count | None = Field(
        default=None,
        description="Most slots that requests with one API key may hold. Null: three quarters of num_slots "
        "if there are several keys.",
    )
    required: bool = Field(
        default=True,
        description="Whether the server is of no use without this model. If false, it starts, stays ready "
        "and goes on without it when it cannot be loaded or keeps dying.",
    )
    max_restarts: int = Field(
        default=3,
        ge=0,
        le=1000,
        description="How often the engine is restarted from its bundle after it died, until one has lived "
        "for ten minutes. Then the process ends with 1, or goes on without a model that is not required.",
    )
    verify_weights: bool = Field(
        default=True,
        description="Check the hashes of the weights while they are loaded; refuse a file that has changed.",
    )
    deterministic: bool = Field(
        default=False,
        description="Use a single prefill shape and a single decode shape for all requests, so that a seeded "
        "request has bit-identical tokens and logprobs whatever shares its batch. Each step costs as much as "
        "with all slots busy.",
    )
    max_programs: int = Field(
        default=128, ge=1, le=4096, description="Refuse a plan that needs more compiled programs than this."
    )
    image_cache_bytes: int = Field(
        default=2**28,
        ge=1,
        le=2**40,
        description="Bytes on each device for image features, so that a repeated image is not encoded again; "
        "never less than the longest prompt needs. Only for task image-text.",
    )
    speculation: SpeculationConfig | None = Field(
        default=None,
        description="Guess tokens that repeat earlier ones, and verify several in one dispatch: the same "
        "tokens, sooner where an answer copies. Null: off.",
    )
    precompile: tuple[PrecompileConfig, ...] = Field(
        default=(PrecompileConfig(),),
        min_length=1,
        strict=False,
        description="Shapes to compile ahead of requests.",
    )
    prompt_logprobs: bool = Field(
        default=False,
        description="Compile what `echo` with `logprobs` needs, which evaluation harnesses use: two more "
        "programs.",
    )
    embeddings: Literal["mean", "last"] | None = Field(
        default=None,
        description="Compile what `/v1/embeddings` needs. `mean` averages the hidden states of all tokens, "
        "`last` takes the last token's. Two more programs, or four if a batch_size is above 1.",
    )
    tool_parser: Literal["auto", "hermes", "llama3_json", "mistral", "pythonic", "none"] = Field(
        default="auto",
        description="How the model writes tool calls: `auto` follows the chat template, `none` refuses "
        "`tools`.",
    )
    reasoning_parser: Literal["auto", "think", "none"] = Field(
        default="auto",
        description="Whether `<think>` tags become `reasoning_content`; `auto` follows the chat template.",
    )
    sampling: SamplingConfig = Field(
        default=SamplingConfig(), description="Sampling defaults for this model."
    )
    chat_template_kwargs: dict[str, TemplateKwargType] = Field(
        default={"enable_thinking": "boolean"},
        max_length=64,
        description="Variables of the chat template that requests may set with chat_template_kwargs, each "
        "with its type: `boolean`, `integer`, `number` or `string`.",
    )
    verify: Literal["auto", "off"] = Field(
        default="auto",
        description="Compare a newly built bundle with transformers if torch is installed; `vinfer verify` "
        "does so at any time.",
    )

    @field_validator("name")
    @classmethod
    def _name_is_a_plain_id(cls, name: str) -> str:
        # The name appears in URLs, log lines and metric labels.
        if not _MODEL_NAME.fullmatch(name):
            allowed = "letters, digits and . _ : / -, starting with a letter or digit, at most 128"
            raise refused(((), f"is {name[:60]!r}; must be {allowed}: rename it"))
        return name

    @field_validator("chat_template_kwargs")
    @classmethod
    def _variables_are_the_templates_own(
        cls, kwargs: dict[str, TemplateKwargType]
    ) -> dict[str, TemplateKwargType]:
        for name in kwargs:
            if not _TEMPLATE_VARIABLE.fullmatch(name):
                allowed = "letters, digits and _, not starting with a digit, at most 64"
                raise refused(((), f"has {name[:60]!r}; names must be {allowed}: rename it"))
            if name in _OUR_VARIABLES or name.endswith("_token"):
                raise refused(((), f"has {name}, which no request may set: remove it"))
        return kwargs

    @field_validator("revision")
    @classmethod
    def _revision_has_a_hub_id(cls, revision: str | None, info: ValidationInfo) -> str | None:
        source = info.data.get("source", "")
        if revision is not None and (
            source.startswith(("package:", "/", "./", "../", "~")) or source.endswith(".gguf")
        ):
            raise refused(((), f"is {revision!r}; source is {source}, not a hub id: remove revision"))
        return revision

    @field_validator("num_slots")
    @classmethod
    def _dp_divides_num_slots(cls, num_slots: int, info: ValidationInfo) -> int:
        mesh = info.data.get("mesh")
        if mesh is not None and num_slots % mesh.dp:
            below = num_slots // mesh.dp * mesh.dp
            choice = f"{below} or {below + mesh.dp}" if below else f"{mesh.dp}"
            raise refused(
                ((), f"is {num_slots}; mesh.dp is {mesh.dp} and must divide it: use {choice}"),
            )
        return num_slots

    @field_validator("speculation")
    @classmethod
    def _bits_may_differ(
        cls, speculation: SpeculationConfig | None, info: ValidationInfo
    ) -> SpeculationConfig | None:
        if speculation is not None and info.data.get("deterministic"):
            text = "is set; deterministic is true, and the bits of verified tokens are others: remove one"
            raise refused(((), text))
        return speculation

    @field_validator("precompile")
    @classmethod
    def _shapes_fit(
        cls, precompile: tuple[PrecompileConfig, ...], info: ValidationInfo
    ) -> tuple[PrecompileConfig, ...]:
        max_model_len = info.data.get("max_model_len") or MAX_INT32
        num_slots = info.data.get("num_slots", MAX_INT32)
        problems: list[tuple[tuple[str | int, ...], str]] = []
        for i, shapes in enumerate(precompile):
            for j, length in enumerate(shapes.prefill_length or ()):
                if length > max_model_len:
                    text = f"is {length}; max_model_len is {max_model_len}: lower it or raise max_model_len"
                    problems.append(((i, "prefill_length", j), text))
            for j, batch_size in enumerate(shapes.batch_size):
                if batch_size > num_slots:
                    text = f"is {batch_size}; num_slots is {num_slots}: lower it or raise num_slots"
                    problems.append(((i, "batch_size", j), text))
        if info.data.get("deterministic"):
            sizes = {size for shapes in precompile for size in shapes.batch_size}
            lengths = {length for shapes in precompile for length in shapes.prefill_length or (None,)}
            images = {vision for shapes in precompile for vision in shapes.vision or ()}
            if sizes != {1} or len(lengths) > 1 or len(images) > 1:
                text = (
                    "has more than one shape, or a batch_size above 1; deterministic is true and allows one "
                    "prompt of one length, and one image shape: use only "
                    "{batch_size: 1, prefill_length: 256}, or leave out deterministic"
                )
                problems.append(((), text))
        if problems:
            raise refused(*problems)
        return precompile


class Config(Block):
    """A whole vinfer YAML file."""

    model_config = ConfigDict(title="vinfer configuration")

    server: ServerConfig = Field(default=ServerConfig(), description="The HTTP server.")
    models: tuple[ModelConfig, ...] = Field(
        min_length=1, strict=False, description="Models to serve, each with its own engine."
    )
    cache_dir: LocalPath = Field(
        default_factory=lambda: default_cache_dir(os.environ),
        json_schema_extra={"default": "~/.cache/vinfer"},
        description="Directory for built bundles (in bundles/); $XDG_CACHE_HOME/vinfer if that is set.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Lowest severity of log lines to write."
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="How log lines are written; `json` is one object per line."
    )

    @property
    def bundles_dir(self) -> Path:
        """Directory that holds one bundle per key."""
        return self.cache_dir / "bundles"

    @field_validator("models")
    @classmethod
    def _models_fit(cls, models: tuple[ModelConfig, ...], info: ValidationInfo) -> tuple[ModelConfig, ...]:
        server = info.data.get("server")
        problems: list[tuple[tuple[str | int, ...], str]] = []
        first_by_name: dict[str, int] = {}
        for i, model in enumerate(models):
            first = first_by_name.setdefault(model.name, i)
            if first != i:
                text = f"is {model.name!r}, the same as models[{first}].name: names must be unique"
                problems.append(((i, "name"), text))
            n = model.sampling.n
            if server is not None and n is not None and n > server.max_n:
                text = f"is {n}; server.max_n is {server.max_n}: lower it or raise server.max_n"
                problems.append(((i, "sampling", "n"), text))
        if not any(model.required for model in models):
            problems.append(((), "has no required model: leave out required: false for one of them"))
        if problems:
            raise refused(*problems)
        return models
