"""Images in chat completions: answers over HTTP match transformers on the same file."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="answers are compared with those of transformers")

import httpx
from chat_with_images import data_url, server_over
from PIL import Image
from tiny.bundles import model_config
from tiny.checkpoints import checkpoint
from tiny.models import VOCAB_SIZE
from tiny.vision_models import PATCH_SIZE, VISION

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from vinfer.engine.engine import Engine

MAX_TOKENS = 24
Post = Callable[..., httpx.Response]


def drawing(seed: int, width: int = 64, height: int = 48) -> Image.Image:
    """Return an image that is larger than the model's and not square."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


FIRST, SECOND = drawing(1), drawing(2, 40, 90)
TEXT = {"type": "text", "text": "What is it?"}
ONE = {"type": "image_url", "image_url": {"url": data_url(FIRST), "detail": "low"}}
AS_STRING = {"type": "image_url", "image_url": data_url(FIRST)}
AS_IMAGE = {"type": "image", "image": data_url(FIRST)}
OTHER = {"type": "image", "image": data_url(SECOND)}


# One family for each kind of processor.
NAMES = ("llava", "llava-siglip", "gemma3-images", "qwen2-vl")


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.bundles(name)) for name in NAMES])
def name(request: pytest.FixtureRequest) -> str:
    """Return the name of a checkpoint and its bundle."""
    found: str = request.param
    return found


@pytest.fixture
def post(name: str, post_to: Callable[[str], Post]) -> Post:
    return post_to(name)


def messages(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def chat(post: Post, *parts: dict[str, Any], **fields: Any) -> httpx.Response:
    greedy = {"temperature": 0, "max_tokens": MAX_TOKENS, "ignore_eos": True}
    return post("/v1/chat/completions", messages=messages(*parts), **{**greedy, **fields})


def processor_of(name: str) -> Any:
    """Build transformers' own processor of a checkpoint, without torchvision."""
    from transformers import Gemma3Processor, LlavaProcessor, PreTrainedTokenizerFast, Qwen2VLProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    directory, family = checkpoint(name), VISION[name]
    template = (directory / "chat_template.jinja").read_text()
    if family.family == "Gemma3":
        boi, image, eoi, *_ = family.special_tokens
        tokens = {"boi_token": boi, "image_token": image, "eoi_token": eoi}
        return Gemma3Processor(
            image_processor=Gemma3ImageProcessorPil.from_pretrained(directory),
            tokenizer=PreTrainedTokenizerFast.from_pretrained(directory, extra_special_tokens=tokens),
            chat_template=template,
            image_seq_length=family.num_image_tokens,
        )
    if family.grids:
        # Use the limits that the bundle's largest program sets.
        largest = family.image_size**2

        class WithoutVideos(Qwen2VLProcessor):  # type: ignore[misc]
            """Skips the video processor, which would need torchvision."""

            def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
                if argument_name != "video_processor":
                    return super().check_argument_for_proper_class(argument_name, argument)
                return None

        return WithoutVideos(
            image_processor=Qwen2VLImageProcessorPil.from_pretrained(directory, max_pixels=largest),
            tokenizer=PreTrainedTokenizerFast.from_pretrained(directory),
            chat_template=template,
        )
    is_clip = family.processor["image_processor_type"] == "CLIPImageProcessor"
    image_processor = CLIPImageProcessorPil if is_clip else SiglipImageProcessorPil
    return LlavaProcessor(
        image_processor=image_processor.from_pretrained(directory),
        tokenizer=PreTrainedTokenizerFast.from_pretrained(directory),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default" if is_clip else "full",
        image_token=family.image_token,
        num_additional_image_tokens=1 if is_clip else 0,
        chat_template=template,
    )


def answer_of_transformers(
    name: str, model: PreTrainedModel, images: list[Image.Image], *parts: dict[str, Any]
) -> tuple[str, int]:
    """Return the greedy answer with transformers' own processor, and the number of prompt tokens."""
    processor = processor_of(name)
    plain = [{"type": "image"} if part["type"] != "text" else part for part in parts]
    text = processor.apply_chat_template(messages(*plain), add_generation_prompt=True)
    inputs = processor(images=images or None, text=text, return_tensors="pt", add_special_tokens=False)
    prompt_len = inputs["input_ids"].shape[1]
    # The vocabulary is padded: ids missing in the tokenizer are never sampled here.
    padding = list(range(VISION[name].num_tokens, VOCAB_SIZE))
    found = model.generate(
        **inputs, do_sample=False, max_new_tokens=MAX_TOKENS, eos_token_id=None, suppress_tokens=padding
    )
    return processor.tokenizer.decode(found[0, prompt_len:], skip_special_tokens=True), prompt_len


CASES = {
    "image first": ([FIRST], (ONE, TEXT)),
    "image last": ([FIRST], (TEXT, AS_STRING)),
    "two images": ([FIRST, SECOND], (AS_IMAGE, TEXT, OTHER)),
    "text": ([], (TEXT,)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_answer_is_that_of_transformers(
    case: str, name: str, post: Post, reference_of: Callable[[str], PreTrainedModel]
) -> None:
    images, parts = CASES[case]
    text, prompt_len = answer_of_transformers(name, reference_of(name), images, *parts)
    answer = chat(post, *parts)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == text
    assert answer.json()["usage"]["prompt_tokens"] == prompt_len
    counted = post("/v1/count_tokens", conversation=messages(*parts))
    assert counted.json()["count"] == prompt_len
    assert post("/tokenize", messages=messages(*parts)).json()["count"] == prompt_len


def test_every_form_of_an_image_is_the_same_image(post: Post) -> None:
    answers = {chat(post, part, TEXT).json()["choices"][0]["message"]["content"] for part in (ONE, AS_STRING)}
    answers.add(chat(post, AS_IMAGE, TEXT).json()["choices"][0]["message"]["content"])
    assert len(answers) == 1
    other = chat(post, OTHER, TEXT).json()["choices"][0]["message"]["content"]
    assert other not in answers


class GivenFile:
    """Returns the same file for any URL."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image
        self.asked: list[tuple[str, str | None]] = []

    async def fetch(self, source: str, *, param: str | None = None) -> bytes:
        self.asked.append((source, param))
        return base64.b64decode(data_url(self.image).partition(",")[2])


def test_a_fetched_image_is_the_same_image(
    name: str, post: Post, bundle_of: Callable[[str], Path], engine_of: Callable[[str], Engine]
) -> None:
    fetcher = GivenFile(FIRST)
    url = "https://images.example/cat.png"
    with server_over(
        bundle_of(name), model_config(name), engine_of(name), image_fetcher=fetcher
    ) as fetching_post:
        fetched = chat(fetching_post, TEXT, {"type": "image_url", "image_url": {"url": url}})
    assert fetcher.asked == [(url, "messages[0].content[1].image_url.url")]
    sent = chat(post, TEXT, AS_STRING)
    assert fetched.json()["choices"] == sent.json()["choices"]


def test_choices_of_one_image_share_its_prompt(post: Post) -> None:
    body = chat(post, ONE, TEXT, n=2).json()
    first, second = (choice["message"]["content"] for choice in body["choices"])
    assert first == second == chat(post, ONE, TEXT).json()["choices"][0]["message"]["content"]
    cached = body["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached == body["usage"]["prompt_tokens"] - 1


def test_a_typed_placeholder_is_text(name: str, post: Post) -> None:
    family = VISION[name]
    typed = {"type": "text", "text": f"{' '.join(family.special_tokens)} is what I typed"}
    alone = chat(post, typed).json()["usage"]["prompt_tokens"]
    with_image = chat(post, ONE, typed).json()["usage"]["prompt_tokens"]
    assert with_image - alone == family.num_prompt_tokens


@pytest.mark.parametrize(
    ("parts", "param"),
    [
        ((OTHER, ONE, AS_IMAGE, OTHER), "messages[0].content[3].image"),
        (({"type": "image"}, TEXT), "messages[0].content[0].image"),
        (({"type": "image_url", "image_url": {}}, TEXT), "messages[0].content[0].image_url.url"),
        (
            ({"type": "image_url", "image_url": "http://127.0.0.1/a.png"},),
            "messages[0].content[0].image_url.url",
        ),
        ((TEXT, {"type": "image", "image": "/etc/passwd"}), "messages[0].content[1].image"),
        ((TEXT, {"type": "image", "image": "data:image/png;base64,AAAA"}), "messages[0].content[1].image"),
        (({**ONE, "text": "both"},), "messages[0].content[0].text"),
        (({"type": "input_audio"},), "messages[0].content[0].type"),
        (({"type": "video", "video": "https://example.com/a.mp4"},), "messages[0].content[0].type"),
        (({"type": "video_url", "video_url": {"url": "a.mp4"}},), "messages[0].content[0].type"),
    ],
)
def test_what_is_refused(parts: tuple[dict[str, Any], ...], param: str, post: Post) -> None:
    answer = chat(post, *parts)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_images_belong_to_users(post: Post) -> None:
    turns = [{"role": "system", "content": [ONE]}, {"role": "user", "content": "hi"}]
    answer = post("/v1/chat/completions", messages=turns)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "messages[0].content[0]"


def test_a_prompt_that_its_images_make_too_long_is_refused(post: Post) -> None:
    long = {"type": "text", "text": "x" * 470}
    assert chat(post, long, max_tokens=8).status_code == 200
    answer = chat(post, ONE, OTHER, long, max_tokens=8)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_capabilities_and_metrics_know_images(
    name: str, post: Post, engine_of: Callable[[str], Engine]
) -> None:
    chat(post, ONE, TEXT)
    stats = engine_of(name).stats()
    assert stats.mm_cache_hits_total < stats.mm_cache_queries_total
    assert 0 < stats.num_images_encoded_total <= stats.mm_cache_queries_total


@pytest.mark.bundles("qwen2-vl")
def test_an_image_counts_by_its_size(post_to: Callable[[str], Post]) -> None:
    post = post_to("qwen2-vl")

    def num_prompt_tokens(width: int, height: int) -> int:
        part = {"type": "image", "image": data_url(drawing(3, width, height))}
        answer = chat(post, part, max_tokens=1)
        assert answer.status_code == 200, answer.text
        tokens: int = answer.json()["usage"]["prompt_tokens"]
        return tokens

    least = num_prompt_tokens(24, 24)
    assert num_prompt_tokens(36, 48) - least == 12 - 4
    # The checkpoint allows 100 tokens, the largest program takes 64.
    assert num_prompt_tokens(400, 400) - least == 64 - 4
    # Shrunk images keep their aspect ratio: 4 by 16 placeholders instead of 8 by 8.
    assert num_prompt_tokens(1600, 400) - least == 4 * 16 - 4


@pytest.mark.bundles("qwen2-vl")
@pytest.mark.parametrize(("width", "message"), [(2100, "aspect ratio"), (1990, "takes 112 tokens")])
def test_an_image_too_long_for_the_model_is_refused(
    width: int, message: str, post_to: Callable[[str], Post]
) -> None:
    answer = chat(post_to("qwen2-vl"), {"type": "image", "image": data_url(drawing(3, width, 10))}, TEXT)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "messages[0].content[0].image"
    assert message in answer.json()["error"]["message"]
