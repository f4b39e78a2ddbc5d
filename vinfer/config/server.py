"""The `server` block of the YAML file: the HTTP server and its limits.

Plain data, as `schema`.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from vinfer.config.block import Block, LocalPath, printable

_ORIGIN = re.compile(r"https?://[A-Za-z0-9._\-\[\]:]+|[a-z][a-z0-9+.\-]*://[A-Za-z0-9._\-]+")


def _origin(value: str) -> str:
    if value != "*" and not _ORIGIN.fullmatch(value):
        raise ValueError("must be * or an origin such as https://chat.example.org, without a path")
    return value


def _http_url(value: str) -> str:
    if not re.fullmatch(r"https?://[^\s/]+(/\S*)?", value):
        raise ValueError("must be an http or https URL, such as http://127.0.0.1:4318/v1/traces")
    return value


class ImagesConfig(Block):
    """Limits of one image and of the images of one request; a request beyond them gets a 400."""

    allow_remote: bool = Field(
        default=False,
        description="Fetch http(s) URLs, from public addresses only; false accepts only data URLs.",
    )
    max_per_request: int = Field(default=8, ge=1, le=256, description="Most images in one request.")
    max_bytes: int = Field(
        default=20 * 2**20, ge=1024, le=2**28, description="Largest image file in bytes, as sent or fetched."
    )
    max_pixels: int = Field(
        default=25_000_000,
        ge=1024,
        le=2**27,
        description="Largest width times height; decoding takes up to 12 bytes of memory per pixel.",
    )
    max_frames: int = Field(
        default=100,
        ge=1,
        le=10_000,
        description="Most frames of an animated file; only the first one is used.",
    )
    timeout_seconds: float = Field(
        default=10.0, gt=0, le=300, description="Longest time to fetch one image, redirects included."
    )
    max_fetches: int = Field(
        default=8, ge=1, le=256, description="Images fetched at the same time by the whole server."
    )


class DistributedConfig(Block):
    """One model over several hosts: who is in the group. The keys are the same on all of its members."""

    detect: Literal["auto", "off", "lws", "slurm", "tpu"] = Field(
        default="off",
        description="Which launcher's variables say who is in the group: LeaderWorkerSet's, Slurm's or a TPU "
        "slice's. `auto` takes the first of them that is there, and serves alone without one.",
    )
    coordinator: Annotated[str, AfterValidator(printable)] | None = Field(
        default=None,
        min_length=1,
        description="HOST or HOST:PORT of the leader; null takes the launcher's, and port 8482.",
    )
    num_processes: int | None = Field(
        default=None, ge=1, le=4096, description="Members of the group; null takes the launcher's."
    )
    process_id: int | None = Field(
        default=None,
        ge=0,
        le=4095,
        description="This member's number; the leader is 0. Null takes the launcher's.",
    )
    stream_port: int = Field(
        default=8483, ge=1, le=65535, description="TCP port of the leader for its followers."
    )
    secret_file: LocalPath | None = Field(
        default=None,
        description="File with a secret of at least 32 characters, the same on all members. Must not be "
        "readable by everyone.",
    )
    join_seconds: float = Field(
        default=600.0, gt=0, le=86400, description="How long to wait for the other members at the start."
    )
    heartbeat_seconds: int = Field(
        default=10, ge=2, le=600, description="Longest silence of a member; then the group ends."
    )
    stall_seconds: float = Field(
        default=30.0,
        gt=0,
        le=86400,
        description="Longest time from a dispatch to its end on all members; then the group ends.",
    )


class ServerConfig(Block):
    """The HTTP server and its limits; shared by all models."""

    host: Annotated[str, AfterValidator(printable)] = Field(
        default="127.0.0.1",
        min_length=1,
        description="Address to bind; any address beyond loopback needs api_keys_file.",
    )
    port: int = Field(default=8000, ge=0, le=65535, description="TCP port; 0 picks a free one.")
    api_keys_file: LocalPath | None = Field(
        default=None,
        description="File with one API key per line, relative to the YAML file; null requires no key. "
        "Must not be readable by everyone.",
    )
    max_workers: int = Field(default=4, ge=1, le=256, description="Threads that tokenize and decode images.")
    page: bool | None = Field(
        default=None,
        description="Serve a chat and status page to browsers at /; null does so if host is loopback.",
    )
    metrics: bool = Field(default=True, description="Serve Prometheus metrics at /metrics.")
    traces_endpoint: Annotated[str, AfterValidator(_http_url)] | None = Field(
        default=None,
        description="URL that OpenTelemetry traces are sent to by OTLP over HTTP, such as "
        "http://127.0.0.1:4318/v1/traces; null sends none. Needs the extra `otel`.",
    )
    metrics_public: bool = Field(
        default=False,
        description="Serve /metrics without an API key, for a Prometheus that has none. It names the models "
        "and the API keys, and shows how much they are used.",
    )
    metrics_names: tuple[Literal["vinfer", "vllm"], ...] = Field(
        default=("vinfer",),
        strict=False,
        min_length=1,
        description="Prefixes of the metrics. `vllm` serves those that vLLM has under its names, for "
        "dashboards and routers that know only these.",
    )
    unknown_fields: Literal["refuse", "ignore"] = Field(
        default="refuse", description="What to do with request fields that vinfer does not know."
    )
    max_body_bytes: int = Field(
        default=4 * 2**20,
        ge=1024,
        le=2**30,
        description="Largest request body in bytes; a larger one gets a 413.",
    )
    max_preparing_bytes: int = Field(
        default=64 * 2**20,
        ge=1024,
        le=2**36,
        description="Bytes of request bodies that may be read and prepared at the same time; further ones "
        "get a 429. With several API keys, half of it for one key.",
    )
    max_n: int = Field(
        default=8, ge=1, le=128, description="Largest n (choices) that one request may ask for."
    )
    drain_timeout_seconds: float = Field(
        default=30.0, ge=0, le=3600, description="How long running requests may continue after SIGTERM."
    )
    drain_delay_seconds: float = Field(
        default=0.0,
        ge=0,
        le=600,
        description="How long to go on serving after SIGTERM while /readiness is already 503, so that load "
        "balancers notice first.",
    )
    step_timeout_seconds: float = Field(
        default=300.0,
        gt=0,
        le=86400,
        description="Longest time for one step of an engine; then its device is taken to hang, and the "
        "process ends with 1.",
    )
    request_timeout_seconds: float = Field(
        default=600.0,
        gt=0,
        le=86400,
        description="Longest time for one request from its arrival; a longer one gets a 408.",
    )
    header_timeout_seconds: float = Field(
        default=10.0, gt=0, le=300, description="How long a client may take to send its request headers."
    )
    keep_alive_seconds: float = Field(
        default=120.0,
        ge=0,
        le=3600,
        description="How long an idle connection stays open between requests; longer than in clients' pools, "
        "so that the client closes first.",
    )
    ping_seconds: float = Field(
        default=10.0,
        ge=0,
        le=3600,
        description="Longest silence of a stream before it gets a blank line, for proxies; 0 is off.",
    )
    admin_socket: LocalPath | None = Field(
        default=None,
        description="Unix socket for the admin routes, of mode 0600; null serves none.",
    )
    profile_dir: LocalPath | None = Field(
        default=None,
        description="Directory for profiles of the devices, which the admin socket takes; null takes none.",
    )
    cors_origins: list[Annotated[str, AfterValidator(_origin)]] = Field(
        default=[],
        max_length=64,
        description="Origins whose web pages may call the API, such as https://chat.example.org; '*' is any.",
    )
    images: ImagesConfig = Field(default=ImagesConfig(), description="Limits of the images in requests.")
    distributed: DistributedConfig = Field(
        default=DistributedConfig(), description="One model over several hosts."
    )
