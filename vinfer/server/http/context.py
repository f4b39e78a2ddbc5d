"""What is known about one HTTP request besides its body: its id, its arrival and its outcome.

Lives in the ASGI scope, from the gate to the last byte sent. Event loop only.
"""

from __future__ import annotations

import dataclasses
import re
import time
import uuid

from starlette.types import Scope

from vinfer.server.api_keys import MAX_PRIORITY

_SCOPE_KEY = "vinfer.context"
# Names that are safe in a header; others are only counted.
_SANE_KEY = re.compile(r"[A-Za-z0-9_.\-]{1,64}")
MAX_IGNORED_NAMES = 8
# The id is sent back in a header and written to the log, so it must not be able to break either.
_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:\-]{1,128}")


class ClientLeftError(Exception):
    """The client closed the connection; nobody is waiting for an answer."""


@dataclasses.dataclass(slots=True)
class Usage:
    """What the completions of one HTTP request have used so far.

    Attributes:
        queue_seconds: from arrival to the first slot; None if none was needed yet.
        first_token_seconds: from arrival to the first token; None before it.
    """

    num_prompt_tokens: int = 0
    num_completion_tokens: int = 0
    queue_seconds: float | None = None
    first_token_seconds: float | None = None


@dataclasses.dataclass(slots=True, kw_only=True)
class RequestContext:
    """One HTTP request.

    Attributes:
        arrival_seconds: time.monotonic() when its headers had been read.
        client: the address that the connection comes from.
        tenant: whose request it is: a digest of its API key, or "" if the server has no keys.
        key_name: what the log calls that key.
        priorities: lowest and highest `priority` that it may ask for.
        usage: what it has used so far.
        model_name: set once a served model is found.
        own_seconds: how long after its arrival the client stops waiting; None if it did not say.
        num_body_bytes: bytes of its body that count in `Intake`.
        trace_id: of its OpenTelemetry trace, once it was recorded.
        failed: set if an answer broke off after its first byte, when its status can no longer show that.
        ignored: unknown keys of the conversation, which have no effect.
        max_tokens: the number of tokens that max_tokens was lowered to; None if it was not.
    """

    request_id: str
    arrival_seconds: float
    client: str = ""
    tenant: str = ""
    key_name: str = ""
    priorities: tuple[int, int] = (-MAX_PRIORITY, MAX_PRIORITY)
    usage: Usage = dataclasses.field(default_factory=lambda: Usage())
    model_name: str = ""
    trace_id: str = ""
    failed: bool = False
    num_body_bytes: int = 0
    own_seconds: float | None = None
    ignored: list[str] = dataclasses.field(default_factory=list)
    max_tokens: int | None = None

    @property
    def ignored_names(self) -> list[str]:
        """The names in `ignored` that can be shown, each once and only the first few."""
        sane = [name for name in dict.fromkeys(self.ignored) if _SANE_KEY.fullmatch(name)]
        return sane[:MAX_IGNORED_NAMES]

    @classmethod
    def begin(cls, scope: Scope) -> RequestContext:
        """Create the context of a new request and store it in the scope."""
        sent = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        request_id = sent if _SANE_REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex
        client = scope.get("client") or ("",)
        context = cls(request_id=request_id, arrival_seconds=time.monotonic(), client=str(client[0]))
        scope[_SCOPE_KEY] = context
        return context

    def elapsed_seconds(self) -> float:
        """Return how long ago it arrived."""
        return time.monotonic() - self.arrival_seconds

    @classmethod
    def of(cls, scope: Scope) -> RequestContext:
        """Return the context of a request."""
        context = scope[_SCOPE_KEY]
        assert isinstance(context, cls)
        return context
