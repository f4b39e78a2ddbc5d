"""Renders messages into a prompt with a model's Jinja chat template, as `apply_chat_template` does.

A `ChatTemplate` is immutable and shared by all worker threads. Does not know token ids.

The template comes with the checkpoint and the messages come from strangers, so neither is trusted.
`template_sandbox` limits what a rendering can reach, how long it takes and how much it builds on the way. The
length of the output is limited here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import jinja2.exceptions
import jinja2.meta

from vinfer.errors import BundleError, RequestError
from vinfer.text.continuation import as_begun_answer, cut_at_fence, fenced
from vinfer.text.control_tokens import ControlTokens, RenderedPrompt, text_len, unused_character
from vinfer.text.message_content import ContentFormats
from vinfer.text.template_sandbox import TemplateSandbox
from vinfer.text.tokenizer import Tokenizer

CHAT_TEMPLATE_FILE = "chat_template.jinja"
TOOL_USE_FILE = "tool_use_template.jinja"
"""The template of requests with tools, if a model has one of its own for them."""
MAX_OUTPUT_CHARACTERS = 1 << 20
"""Characters that a template may add besides four times the input. Tool schemas are often written twice and
escaped; anything longer is a runaway loop."""
_MAX_ERROR_LEN = 500
_WORD = "xprobex"
# As in `<|im_end|>` and `<｜User｜>`.
_MARKER = re.compile(r"<[|｜][^\s<>|｜]{1,40}[|｜]>")


class ChatTemplate:
    """A compiled chat template.

    Attributes:
        source: the Jinja source.
        variables: the variables that the template reads, including special tokens and messages.
        takes_tools: whether it shows `tools`.
        shows_system: whether it shows a system message at the beginning; some templates refuse one.

    Args:
        source: as above.
        special_tokens: values of `bos_token`, `eos_token`, ... in the template; None is left undefined.
        control_tokens: the tokenizer's special-token strings, which stay plain text in user text.
        max_render_seconds: a rendering that takes longer is refused.

    Raises:
        BundleError: the template does not compile.
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str | None],
        *,
        control_tokens: ControlTokens,
        max_render_seconds: float = 5.0,
    ) -> None:
        self.source = source
        self._special_tokens = {name: token for name, token in special_tokens.items() if token is not None}
        self._control_tokens = control_tokens
        self._max_render_seconds = max_render_seconds
        self._characters = frozenset(source).union(*self._special_tokens.values())
        self._environment = TemplateSandbox()
        try:
            tree = self._environment.parse(source)
            self.variables = frozenset(jinja2.meta.find_undeclared_variables(tree))
            self._template = self._environment.compile_checked(tree)
        except (jinja2.TemplateError, SyntaxError, ValueError, RecursionError) as error:
            line = getattr(error, "lineno", None)
            raise BundleError(f"chat template{f' line {line}' if line else ''}: {error}") from None
        self._formats = ContentFormats.probe(self._render)
        self.shows_system = self._shows_system()
        self.takes_tools = "tools" in self.variables and self._shows_tools()

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: list[dict[str, Any]] | None = None,
        documents: list[dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> RenderedPrompt:
        """Render a conversation. Encode the result with `Tokenizer.encode_prompt`.

        Args:
            messages: as in the OpenAI API, already validated; `content` is a string, None or a list of parts.
            kwargs: more variables for the template (`enable_thinking`, ...).

        Raises:
            RequestError: the template refuses the messages, or takes too long or too much memory.
        """
        given = {"messages": messages, "tools": tools, "documents": documents, **kwargs}
        return self._render_marked({**given, "add_generation_prompt": add_generation_prompt})

    def render_unfinished(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        documents: list[dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> RenderedPrompt:
        """Render a conversation up to the end of its last message's text, so that the model goes on with it.

        The prompt ends with the text as it was sent, white space included. If the template rewrites the
        text, the prompt is that of a new answer, followed by the text.

        Args:
            messages: the last one has a text, which may be empty, and no tool calls.

        Raises:
            RequestError: as `render`.
        """
        *before, last = messages
        given = {"messages": messages, "tools": tools, "documents": documents, **kwargs}
        fence = unused_character(given, avoid=self._characters)
        given["messages"] = [*before, fenced(last, fence)]
        rendered = self._render_marked({**given, "add_generation_prompt": False})
        found = cut_at_fence(rendered, last, fence, self._control_tokens)
        if found is not None:
            return found
        head = self._render_marked({**given, "messages": before, "add_generation_prompt": True})
        return as_begun_answer(head, last, self._control_tokens)

    def _render_marked(self, given: dict[str, Any]) -> RenderedPrompt:
        """Render, and tell the template's own special tokens from those in the input."""
        given = {**given, "messages": self._formats.apply(given["messages"])}
        mark = self._control_tokens.choose_mark(given, avoid=self._characters)
        if mark is not None:
            given = {name: self._control_tokens.mark(value, mark) for name, value in given.items()}
        return self._control_tokens.unmark(self._render(given), mark)

    def split_markers(self, tokenizer: Tokenizer) -> list[str]:
        """Return what looks like a control token in the source but is several tokens."""
        markers = dict.fromkeys(_MARKER.findall(self.source))
        return [text for text in markers if len(tokenizer.encode(text, add_special_tokens=False)) > 1]

    def _shows_system(self) -> bool:
        messages = [{"role": "system", "content": _WORD}, {"role": "user", "content": "a"}]
        return self._shows_word(messages, None, otherwise=False)

    def _shows_tools(self) -> bool:
        function = {"name": _WORD, "description": "", "parameters": {"type": "object", "properties": {}}}
        tools = [{"type": "function", "function": function}]
        return self._shows_word([{"role": "user", "content": "a"}], tools, otherwise=True)

    def _shows_word(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, *, otherwise: bool
    ) -> bool:
        """Return whether `_WORD` is shown; `otherwise` if the template refuses the messages."""
        given = {"messages": self._formats.apply(messages), "tools": tools, "documents": None}
        try:
            return _WORD in self._render({**given, "add_generation_prompt": True})
        except RequestError:
            return otherwise

    def _render(self, given: Mapping[str, Any]) -> str:
        """Render with exactly these variables and the special tokens."""
        given_len = text_len(given)
        max_characters = 4 * given_len + MAX_OUTPUT_CHARACTERS
        pieces = []
        length = 0
        try:
            self._environment.start(self._max_render_seconds, given_len)
            for piece in self._template.generate({**self._special_tokens, **given}):
                pieces.append(piece)
                length += len(piece)
                if length > max_characters:
                    raise jinja2.exceptions.SecurityError(
                        f"output is longer than {max_characters} characters"
                    )
        except jinja2.TemplateError as error:
            raise RequestError(f"chat template: {_one_line(error)}", param="messages") from None
        except Exception as error:  # noqa: BLE001 - a template raises anything: TypeError, RecursionError, ...
            raise RequestError(
                f"chat template cannot render these messages: {type(error).__name__}: {_one_line(error)}",
                param="messages",
            ) from None
        return "".join(pieces)


def load_chat_template(
    directory: Path, tokenizer: Tokenizer, *, file_name: str = CHAT_TEMPLATE_FILE
) -> ChatTemplate | None:
    """Load a chat template from a bundle's `tokenizer/` directory; return None if the model has none.

    Raises:
        BundleError: the file is unreadable or does not compile.
    """
    path = directory / file_name
    try:
        source = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: not readable: {error}; build the bundle again") from None
    try:
        return ChatTemplate(source, tokenizer.special_tokens, control_tokens=tokenizer.control_tokens)
    except BundleError as error:
        raise BundleError(f"{path}: {error.message}") from None


def _one_line(error: Exception) -> str:
    """Return the error's message for a client: one line of limited length, without addresses."""
    message = " ".join(str(error).split())
    return re.sub(r"0x[0-9a-fA-F]{6,}", "0x...", message)[:_MAX_ERROR_LEN]
