"""Read the commands of a shell block: one list of words per command, and what a `curl` asks for.

Reads the shell that our documents use: quotes, continued lines, comments, variables before a command.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Mapping
from urllib.parse import urlsplit

SERVER = "http://127.0.0.1:8000"
"""Where the server of the documents is."""

_ASSIGNMENT = re.compile(r"^\w+=")
# A comment with a quote would not be told from text in quotes.
_COMMENT = re.compile(r"(^|\s)#[^'\"\n]*$", re.MULTILINE)
_SEPARATORS = {";", "&", "&&", "|", "||"}


@dataclasses.dataclass(frozen=True, slots=True)
class HttpCall:
    """The request that a `curl` command makes."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: str | None
    is_admin: bool = False
    """Sent to a Unix socket."""

    @property
    def path(self) -> str:
        return urlsplit(self.url).path


def commands(text: str) -> list[list[str]]:
    """Return the words of each command, without variables that are set before it.

    Raises:
        ValueError: a quote has no end.
    """
    text = _COMMENT.sub("", text.replace("\\\n", " "))
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|\n")
    # shlex would take the end of the line with the comment.
    lexer.commenters = ""
    lexer.whitespace = " \t\r"
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    for word in lexer:
        if word in _SEPARATORS or not word.strip("\n"):
            found.append([])
        elif found[-1] or not _ASSIGNMENT.match(word):
            found[-1].append(word)
    return [words for words in found if words]


def http_call(words: list[str]) -> HttpCall:
    """Read a `curl` command.

    Raises:
        ValueError: it has an option that the documents did not use so far, or not exactly one URL.
    """
    headers, urls = {}, []
    method, body, is_admin = None, None, False
    rest = iter(words[1:])
    for word in rest:
        if word in ("-H", "--header"):
            name, _, value = next(rest).partition(":")
            headers[name.strip()] = value.strip()
        elif word in ("-d", "--data"):
            body = next(rest)
        elif word in ("-X", "--request"):
            method = next(rest)
        elif word == "--unix-socket":
            is_admin = bool(next(rest))
        elif not word.startswith("-"):
            urls.append(word)
        elif word not in ("-N", "-s", "-i", "-f", "-sf"):
            raise ValueError(f"curl {word} is not known here")
    if len(urls) != 1:
        raise ValueError(f"not exactly one URL: {urls}")
    return HttpCall(method or ("GET" if body is None else "POST"), urls[0], headers, body, is_admin)
