"""The exception tree of vinfer.

Each class defines three things: the HTTP status, the OpenAI error `type` and `code`, and the exit code of
the command line. A message states the key, the value, the limit and the next move. It never contains a
traceback, an address or another request's text. This module imports nothing else from vinfer.

    VinferError                     500 / exit 1
      ConfigError                   exit 2   the YAML, an override or a flag
      CheckpointError               exit 3   the source: missing, unsupported or unsafe
      BuildError                    exit 4   the build half failed
      BundleError                   exit 5   a bundle that is corrupt or made for something else
      BindError                     exit 6   the port is taken
      DeviceError                   exit 7   the accelerator: missing, too few, out of memory
      ParityError                   exit 8   the tokens do not match transformers
      ReferenceUnavailableError     exit 9   transformers cannot run here, so nothing was compared
      AnswerError                   exit 10  a server that a client talks to: not reached, or it refused
      RequestError                  400      a field of one request
        ContextLengthError          400      more tokens than max_model_len
        ImageError                  400      an image that cannot be fetched, decoded or used
        AuthenticationError         401
        NotFoundError               404      unknown route
          ModelNotFoundError        404
        MethodNotAllowedError       405
        RequestTimeoutError         408
        BodyTooLargeError           413
        MediaTypeError              415
        HeadersTooLargeError        431
      QueueFullError                429      with Retry-After
      NotReadyError                 503      starting, draining
      EngineError                   500      the engine failed this request
"""

from __future__ import annotations

from typing import ClassVar


class VinferError(Exception):
    """Base class of every error that vinfer raises on purpose.

    Args:
        message: one sentence for a person; safe to send to a client.
        param: path of the offending field, such as `messages[0].content`, if there is one.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = None
    exit_code: ClassVar[int] = 1
    retry_after_seconds: float | None = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class ConfigError(VinferError):
    exit_code = 2


class CheckpointError(VinferError):
    exit_code = 3


class BuildError(VinferError):
    exit_code = 4


class BundleError(VinferError):
    exit_code = 5


class BindError(VinferError):
    exit_code = 6


class DeviceError(VinferError):
    exit_code = 7


class ParityError(VinferError):
    exit_code = 8


class ReferenceUnavailableError(VinferError):
    exit_code = 9


class AnswerError(VinferError):
    exit_code = 10


class RequestError(VinferError):
    status = 400
    type = "invalid_request_error"


class ContextLengthError(RequestError):
    code = "context_length_exceeded"


class ImageError(RequestError):
    code = "invalid_image"


class AuthenticationError(RequestError):
    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class HostError(RequestError):
    status = 403
    type = "permission_error"
    code = "host_not_allowed"


class NotFoundError(RequestError):
    status = 404
    type = "not_found_error"


class ModelNotFoundError(NotFoundError):
    code = "model_not_found"


class MethodNotAllowedError(RequestError):
    status = 405
    code = "method_not_allowed"


class RequestTimeoutError(RequestError):
    status = 408
    type = "timeout_error"
    code = "request_timeout"


class BodyTooLargeError(RequestError):
    status = 413
    code = "body_too_large"


class MediaTypeError(RequestError):
    status = 415
    code = "unsupported_media_type"


class HeadersTooLargeError(RequestError):
    status = 431
    code = "headers_too_large"


class QueueFullError(VinferError):
    """Raised for a request that has no room now.

    Args:
        retry_after_seconds: when there will probably be room.
    """

    status = 429
    type = "rate_limit_error"
    code = "queue_full"

    def __init__(self, message: str, *, param: str | None = None, retry_after_seconds: float = 1.0) -> None:
        super().__init__(message, param=param)
        self.retry_after_seconds = retry_after_seconds


class NotReadyError(VinferError):
    status = 503
    type = "service_unavailable_error"
    code = "not_ready"
    retry_after_seconds = 5.0


class EngineError(VinferError):
    code = "engine_error"
