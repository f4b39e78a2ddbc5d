"""One part of a message's content, in the forms that clients send: text, or an image.

Parsed on the same threads as `messages`. An image is sent as OpenAI's `image_url`, an object or a string, or
as `image`, the form of the original vInference server. `generate.images` fetches it.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, ValidationInfo

from vinfer.errors import RequestError
from vinfer.server.fields.body_model import HistoryBody
from vinfer.server.fields.rules import ByType, OfType

NonEmpty = Annotated[str, Field(min_length=1)]

ImageDetail = Literal["auto", "low", "high"]

ImageSource = tuple[str, str]
"""The URL of an image, and the path of the field that holds it in the request's body."""


class ImageUrl(HistoryBody):
    """An image's data or http(s) URL. `detail` has no effect: a model treats all images the same way."""

    url: NonEmpty
    detail: ImageDetail = "auto"


def _string_as_url(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else value


_CONTENTS = {"text", "image_url", "image"}
PART_CONTENT_KEYS = frozenset({"refusal", "input_audio", "audio", "video", "video_url", "file", "source"})
"""What parts of other types contain."""


class ContentPart(HistoryBody):
    """Text or an image; the field named by `type` must be there, and no other."""

    content_keys: ClassVar[frozenset[str]] = PART_CONTENT_KEYS

    rules = (
        ByType(
            *(
                OfType((name,), needs=(name,), lacks=tuple(sorted(_CONTENTS - {name})))
                for name in sorted(_CONTENTS)
            )
        ),
    )

    type: Literal["text", "image_url", "image"]
    text: str | None = None
    image_url: Annotated[
        ImageUrl | None, BeforeValidator(_string_as_url, json_schema_input_type=NonEmpty | ImageUrl | None)
    ] = None
    image: NonEmpty | None = None

    @classmethod
    def _without_unknown(cls, value: dict[str, Any], known: frozenset[str], info: ValidationInfo) -> Any:
        sent = value.get("type")
        if isinstance(sent, str) and sent not in _CONTENTS:
            # The type is what is wrong, not the key that goes with it.
            return {"type": sent}
        return super()._without_unknown(value, known, info)

    @property
    def is_image(self) -> bool:
        return self.type != "text"

    def image_source(self, here: str) -> ImageSource:
        """Return an image's URL and the path of the field that holds it; `here` is the part's own path."""
        if self.image_url is not None:
            return self.image_url.url, f"{here}.image_url.url"
        assert self.image is not None
        return self.image, f"{here}.image"

    def as_template_input(self) -> dict[str, Any]:
        """Return the part for chat templates, which only need to know that an image is there."""
        return {"type": "image"} if self.is_image else {"type": "text", "text": self.text}


def check_may_have_image(role: str, here: str) -> None:
    """Check that a message may have an image; `here` is the path of its part.

    Raises:
        RequestError: names the part.
    """
    if role != "user":
        raise RequestError(
            f"{here} is an image in a message of role {role}; images belong to user messages", param=here
        )
