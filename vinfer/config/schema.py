"""The YAML's blocks as frozen pydantic models: names, defaults, bounds and what must fit together.

Each field's description is the one source of the README table, the JSON Schema and error hints.
Plain data, built on the main thread before anything heavy starts and never changed afterwards. This
module does not read files or the environment (`load` does), derives no shapes (`shapes` does) and knows
nothing about devices: a mesh that no machine could hold is refused later, by the plan.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError
from pydantic_core.core_schema import ValidationInfo

MAX_INT32 = 2**31 - 1
ALL_REMAINING_DEVICES = -1

_Text = TypeVar("_Text", str, Path)

TemplateKwargType = Literal["boolean", "integer", "number", "string"]

_TEMPLATE_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
# What vinfer itself hands to a template, or calls its renderer with.
_OUR_VARIABLES = {
    *("messages", "conversation", "tools", "documents", "add_generation_prompt", "continue_final_message"),
    *("tokenize", "chat_template", "reasoning_effort"),
}
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")


def default_cache_dir(environ: Mapping[str, str]) -> Path:
    """Give the default of `cache_dir`: `$XDG_CACHE_HOME/vinfer`, else `~/.cache/vinfer`."""
    # The XDG specification says to ignore a relative value.
    xdg = environ.get("XDG_CACHE_HOME", "")
    base = (
        Path(xdg) if xdg.startswith("/") else Path(environ.get("HOME") or os.path.expanduser("~")) / ".cache"
    )
    return base / "vinfer"


def _refuse(*problems: tuple[tuple[str | int, ...], str]) -> PydanticCustomError:
    """Make one pydantic error out of (path below the field, sentence) pairs; `problems` unpacks it."""
    return PydanticCustomError(
        "config", "{text}", {"text": "; ".join(text for _, text in problems), "problems": list(problems)}
    )


def _not_zero(value: int) -> int:
    if value == 0:
        raise _refuse(((), "is 0; must be at least 1, or -1 for all remaining devices"))
    return value


def _printable(value: _Text) -> _Text:
    if not str(value).isprintable():
        raise _refuse(((), "holds control characters: remove them"))
    return value


def _one_as_list(value: object) -> object:
    """Let `64` stand for `[64]` and one mapping for a list of one."""
    return value if value is None or isinstance(value, (list, tuple)) else [value]


def _one_or_list(schema: dict[str, Any]) -> None:
    """Say in the JSON Schema what `_one_as_list` accepts."""
    array, *rest = schema.pop("anyOf", None) or [{k: schema.pop(k) for k in ("type", "items", "minItems")}]
    schema["anyOf"] = [array["items"], array, *rest]


class _Block(BaseModel):
    # Strict: `port: true` or `port: "80"` is a mistake, not the number 1 or 80.
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True
    )


_LocalPath = Annotated[Path, Field(strict=False), AfterValidator(_printable)]
_Count = Annotated[int, Field(ge=1, le=MAX_INT32)]
_Axis = Annotated[int, Field(ge=1, le=65536)]


class ImagesConfig(_Block):
    """Limits of one image and of the images of one request; beyond them a 400."""

    allow_remote: bool = Field(
        default=False,
        description="Fetch http(s) URLs, from public addresses only; false takes only data URLs.",
    )
    max_per_request: int = Field(default=8, ge=1, le=256, description="Images in one request.")
    max_bytes: int = Field(
        default=20 * 2**20, ge=1024, le=2**28, description="Bytes of one image file, as sent or fetched."
    )
    max_pixels: int = Field(
        default=25_000_000,
        ge=1024,
        le=2**27,
        description="Width times height; decoding takes up to 12 bytes of memory for each.",
    )
    max_frames: int = Field(
        default=100, ge=1, le=10_000, description="Frames of an animated file; the first one is used."
    )
    timeout_seconds: float = Field(
        default=10.0, gt=0, le=300, description="Longest fetch of one image, redirects included."
    )
    max_fetches: int = Field(
        default=8, ge=1, le=256, description="Images fetched at the same time by the whole server."
    )


class ServerConfig(_Block):
    """The HTTP server and its limits; shared by all models."""

    host: Annotated[str, AfterValidator(_printable)] = Field(
        default="127.0.0.1", min_length=1, description="Address to bind; beyond loopback needs keys."
    )
    port: int = Field(default=8000, ge=0, le=65535, description="TCP port; 0 takes any free one.")
    api_keys_file: _LocalPath | None = Field(
        default=None,
        description="File with one API key per line; null asks for none. Relative to the YAML file.",
    )
    max_workers: int = Field(default=4, ge=1, le=256, description="Threads that tokenize and decode images.")
    metrics: bool = Field(default=True, description="Serve Prometheus metrics at /metrics.")
    unknown_fields: Literal["refuse", "ignore"] = Field(
        default="refuse", description="What to do with request fields that vinfer does not know."
    )
    max_body_bytes: int = Field(
        default=4 * 2**20, ge=1024, le=2**30, description="Largest request body in bytes; beyond it 413."
    )
    max_n: int = Field(
        default=8, ge=1, le=128, description="Largest n (choices) that one request may ask for."
    )
    drain_timeout_seconds: float = Field(
        default=30.0, ge=0, le=3600, description="How long running requests may finish after SIGTERM."
    )
    request_timeout_seconds: float = Field(
        default=600.0,
        gt=0,
        le=86400,
        description="Longest life of one request from its arrival; beyond it 408.",
    )
    header_timeout_seconds: float = Field(
        default=10.0, gt=0, le=300, description="How long a client may take to send its request headers."
    )
    keep_alive_seconds: float = Field(
        default=75.0, ge=0, le=3600, description="How long an idle connection stays open between requests."
    )
    images: ImagesConfig = Field(default=ImagesConfig(), description="What images requests may hold.")


class MeshConfig(_Block):
    """Device mesh: how many devices along each axis."""

    dp: _Axis = Field(default=1, description="Data parallel: slots are split over it; must divide num_slots.")
    fsdp: _Axis = Field(default=1, description="Weights split over it and gathered where used.")
    ep: _Axis = Field(default=1, description="Experts split over it.")
    tp: Annotated[int, AfterValidator(_not_zero)] = Field(
        default=ALL_REMAINING_DEVICES,
        ge=-1,
        le=65536,
        json_schema_extra={"not": {"const": 0}},
        description="Tensor parallel: heads and weights split over it; -1 takes all remaining devices.",
    )
    sp: _Axis = Field(default=1, description="Sequence parallel: positions split over it.")


class VisionConfig(_Block):
    """One compiled image shape."""

    batch_size: int = Field(default=1, ge=1, le=4096, description="Images encoded in one dispatch.")
    channels: int = Field(default=3, ge=1, le=16, description="Colour channels per image.")
    height: int = Field(ge=1, le=16384, description="Image height in pixels.")
    width: int = Field(ge=1, le=16384, description="Image width in pixels.")


class PrecompileConfig(_Block):
    """Prefill shapes to compile: every combination of the listed batch sizes and lengths."""

    batch_size: Annotated[tuple[_Count, ...], BeforeValidator(_one_as_list)] = Field(
        default=(1,),
        min_length=1,
        strict=False,
        json_schema_extra=_one_or_list,
        description="Prompts prefilled in one dispatch; one number or a list, each at most num_slots.",
    )
    prefill_length: Annotated[tuple[_Count, ...] | None, BeforeValidator(_one_as_list)] = Field(
        default=None,
        min_length=1,
        strict=False,
        json_schema_extra=_one_or_list,
        description="Padded prompt lengths in tokens; one number or a list, each at most max_model_len. "
        "Longer prompts go in chunks. Null: 64, 256 and 1024, as far as max_model_len goes; only 256 where "
        "deterministic is true.",
    )
    vision: Annotated[tuple[VisionConfig, ...] | None, BeforeValidator(_one_as_list)] = Field(
        default=None,
        min_length=1,
        strict=False,
        json_schema_extra=_one_or_list,
        description="Image shapes; one or a list. Only for task image-text.",
    )


class SamplingConfig(_Block):
    """Defaults for what a request leaves out; null: the checkpoint's generation_config, else OpenAI's."""

    max_tokens: _Count | None = Field(default=None, description="Tokens to generate at most, per choice.")
    n: int | None = Field(
        default=None, ge=1, le=128, description="Choices per request, at most server.max_n."
    )
    temperature: float | None = Field(
        default=None, ge=0, le=2, description="Softmax temperature; 0 is greedy."
    )
    top_p: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Sample from the most likely tokens that hold this probability; 1 is off.",
    )
    top_k: int | None = Field(
        default=None, ge=0, le=MAX_INT32, description="Sample from this many most likely tokens; 0 is off."
    )
    min_p: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Least probability, relative to the most likely token; 0 is off.",
    )
    repetition_penalty: float | None = Field(
        default=None, gt=0, le=10, description="Divides logits of tokens seen in prompt or output; 1 is off."
    )
    presence_penalty: float | None = Field(
        default=None,
        ge=-2,
        le=2,
        description="Subtracted from logits of tokens seen in the output; 0 is off.",
    )
    frequency_penalty: float | None = Field(
        default=None, ge=-2, le=2, description="Subtracted once per occurrence in the output; 0 is off."
    )


class ModelConfig(_Block):
    """One served model."""

    name: str = Field(description="Id of the model in the API.")
    source: Annotated[str, AfterValidator(_printable)] = Field(
        min_length=1,
        description="Hub id, directory, file.gguf, package:module/file or bundle directory. "
        "Paths are relative to the YAML file.",
    )
    revision: str | None = Field(
        default=None, min_length=1, description="Hub revision: branch, tag or commit; only for a hub id."
    )
    task: Literal["text", "image-text"] = Field(default="text", description="What prompts may hold.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="bfloat16", description="Type of weights, KV cache and compute."
    )
    mesh: MeshConfig = Field(default=MeshConfig(), description="Device mesh.")
    max_model_len: _Count = Field(default=2048, description="Longest prompt plus output, in tokens.")
    num_slots: int = Field(default=16, ge=1, le=4096, description="Requests decoded together.")
    streaming_chunks: int = Field(
        default=8,
        ge=1,
        le=1024,
        description="Most decode steps per dispatch; fewer stream sooner, more cost less.",
    )
    max_queue: int = Field(
        default=64,
        ge=1,
        le=65536,
        description="Requests that may wait for a slot; beyond it 429 with Retry-After.",
    )
    deterministic: bool = Field(
        default=False,
        description="Run every prompt and every answer through one shape of prefill and one of decode: a "
        "seeded request has the same tokens and logprobs to the last bit whatever shares its batch. Each "
        "step costs what it costs with all slots busy and max_model_len tokens in each.",
    )
    max_programs: int = Field(
        default=128, ge=1, le=4096, description="Refuse a plan that needs more compiled programs than this."
    )
    image_cache_bytes: int = Field(
        default=2**28,
        ge=1,
        le=2**40,
        description="Bytes on each device for the features of images, so that one that comes again is not "
        "encoded again; never less than the longest prompt can hold. Only for task image-text.",
    )
    precompile: tuple[PrecompileConfig, ...] = Field(
        default=(PrecompileConfig(),),
        min_length=1,
        strict=False,
        description="Shapes to compile ahead of requests.",
    )
    prompt_logprobs: bool = Field(
        default=False,
        description="Compile what `echo` with `logprobs` needs, as evaluation harnesses ask for it: "
        "two programs more per KV length.",
    )
    embeddings: Literal["mean", "last"] | None = Field(
        default=None,
        description="Compile what `/v1/embeddings` needs, and pool hidden states over all tokens or take the "
        "last one's: two programs more per KV length, four where a batch_size is above 1.",
    )
    tool_parser: Literal["auto", "hermes", "llama3_json", "mistral", "pythonic", "none"] = Field(
        default="auto",
        description="How the model writes tool calls: `auto` asks its chat template, `none` refuses `tools`.",
    )
    reasoning_parser: Literal["auto", "think", "none"] = Field(
        default="auto",
        description="Whether `<think>` tags become `reasoning_content`; `auto` asks the chat template.",
    )
    sampling: SamplingConfig = Field(default=SamplingConfig(), description="Sampling defaults of this model.")
    chat_template_kwargs: dict[str, TemplateKwargType] = Field(
        default={"enable_thinking": "boolean"},
        max_length=64,
        description="Variables of the chat template that requests may set by chat_template_kwargs, each with "
        "its type: `boolean`, `integer`, `number` or `string`.",
    )
    verify: Literal["auto", "off"] = Field(
        default="auto",
        description="Compare a newly built bundle with transformers where torch is installed; "
        "`vinfer verify` does it at any time.",
    )

    @field_validator("name")
    @classmethod
    def _name_is_a_plain_id(cls, name: str) -> str:
        # It goes into URLs, log lines and metric labels.
        if not _MODEL_NAME.fullmatch(name):
            allowed = "letters, digits and . _ : / -, starting with a letter or digit, at most 128"
            raise _refuse(((), f"is {name[:60]!r}; allowed are {allowed}: rename it"))
        return name

    @field_validator("chat_template_kwargs")
    @classmethod
    def _variables_are_the_templates_own(
        cls, kwargs: dict[str, TemplateKwargType]
    ) -> dict[str, TemplateKwargType]:
        for name in kwargs:
            if not _TEMPLATE_VARIABLE.fullmatch(name):
                allowed = "letters, digits and _, not starting with a digit, at most 64"
                raise _refuse(((), f"holds {name[:60]!r}; allowed are {allowed}: rename it"))
            if name in _OUR_VARIABLES or name.endswith("_token"):
                raise _refuse(((), f"holds {name}, which requests may never set this way: remove it"))
        return kwargs

    @field_validator("revision")
    @classmethod
    def _revision_has_a_hub_id(cls, revision: str | None, info: ValidationInfo) -> str | None:
        source = info.data.get("source", "")
        if revision is not None and (
            source.startswith(("package:", "/", "./", "../", "~")) or source.endswith(".gguf")
        ):
            raise _refuse(((), f"is {revision!r}; source is {source}, not a hub id: remove revision"))
        return revision

    @field_validator("num_slots")
    @classmethod
    def _dp_divides_num_slots(cls, num_slots: int, info: ValidationInfo) -> int:
        mesh = info.data.get("mesh")
        if mesh is not None and num_slots % mesh.dp:
            below = num_slots // mesh.dp * mesh.dp
            choice = f"{below} or {below + mesh.dp}" if below else f"{mesh.dp}"
            raise _refuse(
                ((), f"is {num_slots}; mesh.dp is {mesh.dp} and must divide it: use {choice}"),
            )
        return num_slots

    @field_validator("precompile")
    @classmethod
    def _shapes_fit(
        cls, precompile: tuple[PrecompileConfig, ...], info: ValidationInfo
    ) -> tuple[PrecompileConfig, ...]:
        max_model_len = info.data.get("max_model_len", MAX_INT32)
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
                    "has more than one shape, or batches; deterministic is true and takes one prompt of one "
                    "length, and images of one shape: use {batch_size: 1, prefill_length: 256} alone or "
                    "leave out deterministic"
                )
                problems.append(((), text))
        if problems:
            raise _refuse(*problems)
        return precompile


class Config(_Block):
    """A whole vinfer YAML file."""

    model_config = ConfigDict(title="vinfer configuration")

    server: ServerConfig = Field(default=ServerConfig(), description="The HTTP server.")
    models: tuple[ModelConfig, ...] = Field(
        min_length=1, strict=False, description="Models to serve, each with its own engine."
    )
    cache_dir: _LocalPath = Field(
        default_factory=lambda: default_cache_dir(os.environ),
        json_schema_extra={"default": "~/.cache/vinfer"},
        description="Where built bundles are kept (in bundles/); $XDG_CACHE_HOME/vinfer where that is set.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe log lines to write."
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
                text = f"is {model.name!r}, which is models[{first}].name too: names must be unique"
                problems.append(((i, "name"), text))
            n = model.sampling.n
            if server is not None and n is not None and n > server.max_n:
                text = f"is {n}; server.max_n is {server.max_n}: lower it or raise server.max_n"
                problems.append(((i, "sampling", "n"), text))
        if problems:
            raise _refuse(*problems)
        return models
