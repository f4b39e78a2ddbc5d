"""The bodies that a conversation asks with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vinfer.chat.conversation import MAX_IMAGE_BYTES, Conversation
from vinfer.errors import ConfigError

PNG = b"\x89PNG\r\n"


def test_answers_are_part_of_the_next_question() -> None:
    conversation = Conversation("m", system="Be brief.")
    conversation.ask("one")
    conversation.answer("1")
    assert conversation.ask("two") == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "1"},
            {"role": "user", "content": "two"},
        ],
    }


def test_a_question_without_an_answer_is_forgotten() -> None:
    conversation = Conversation("m")
    conversation.ask("one")
    conversation.answer("")
    assert conversation.ask("two")["messages"] == [{"role": "user", "content": "two"}]


def test_clear_keeps_the_settings() -> None:
    conversation = Conversation("m", system="Be brief.")
    conversation.set_field("temperature", "0")
    conversation.ask("one")
    conversation.clear()
    assert conversation.num_messages == 0
    body = conversation.ask("two")
    assert (body["temperature"], len(body["messages"])) == (0, 2)


def test_an_image_goes_with_one_question(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(PNG)
    conversation = Conversation("m")
    conversation.attach(tmp_path / "a.bin")
    [message] = conversation.ask("What is it?")["messages"]
    assert message["content"] == [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0K"}},
        {"type": "text", "text": "What is it?"},
    ]
    conversation.answer("a")
    assert conversation.ask("And now?")["messages"][-1]["content"] == "And now?"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file or directory: give the path"),
        (b"", "is none of png, jpeg, gif, webp: convert it"),
        (b"<svg/>", "is none of png"),
        (PNG + bytes(MAX_IMAGE_BYTES), "has more than 20971520 bytes"),
    ],
    ids=["missing", "empty", "svg", "large"],
)
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        Conversation("m").attach(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.2", 0.2),
        ("true", True),
        ('["a"]', ["a"]),
        ("high", "high"),
        ('{"type": "json_object"}', {"type": "json_object"}),
    ],
)
def test_fields_are_json_or_else_text(text: str, value: Any) -> None:
    conversation = Conversation("m")
    conversation.set_field("x", text)
    assert conversation.ask("a")["x"] == value
    conversation.set_field("x", "")
    assert "x" not in conversation.fields


@pytest.mark.parametrize("name", ["messages", "stream", "model", "n", "tools", "", "a b", "a.b"])
def test_fields_of_the_conversation_are_not_for_the_user(name: str) -> None:
    with pytest.raises(ConfigError, match="is no field to set"):
        Conversation("m").set_field(name, "1")
