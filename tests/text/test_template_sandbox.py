"""Hostile templates: each one ends soon, with an error, and without using much memory."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import pytest

from vinfer.errors import RequestError
from vinfer.text.chat_template import ChatTemplate
from vinfer.text.control_tokens import ControlTokens

MANY = "{% for i in range(99) %}"
MANY_TIMES = "{% for i in range(99999) %}"
NESTED = MANY_TIMES * 2 + "{}" + "{% endfor %}" * 2
NS = "{% set ns = namespace(s='aaaa', l=[1, 2], k=[1, 2], d={}) %}"


def template(source: str, **options: Any) -> ChatTemplate:
    return ChatTemplate(source, {}, control_tokens=ControlTokens(()), **options)


BOMBS = {
    "silent loops": NESTED.replace("{}", ""),
    "silent loops with a condition": NESTED.replace("{}", "{% if i == 7 %}{% endif %}"),
    "a loop with a filter": "{% for i in range(99999) if i < 0 %}{% endfor %}" * 99,
    "doubling by ~": NS + MANY + "{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "doubling by +": NS + MANY + "{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "doubling by %": NS + MANY + "{% set ns.s = '%s%s' % (ns.s, ns.s) %}{% endfor %}",
    "doubling by format": NS + MANY + "{% set ns.s = '{0}{0}'.format(ns.s) %}{% endfor %}",
    "doubling by the format filter": NS + MANY + "{% set ns.s = '%s%s' | format(ns.s, ns.s) %}{% endfor %}",
    "doubling by join": NS + MANY + "{% set ns.s = [ns.s, ns.s] | join %}{% endfor %}",
    "doubling by str.join": NS + MANY + "{% set ns.s = ns.s.join(['', '', '']) %}{% endfor %}",
    "doubling by replace": NS + MANY + "{% set ns.s = ns.s | replace('a', 'aaaa') %}{% endfor %}",
    "doubling by str.replace": NS + MANY + "{% set ns.s = ns.s.replace('', 'aaaa') %}{% endfor %}",
    "doubling by a block": NS
    + MANY
    + "{% set s %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = s %}{% endfor %}",
    "doubling by a macro": "{% macro m(s) %}{{ s }}{{ s }}{% endmacro %}"
    + NS
    + MANY
    + "{% set ns.s = m(ns.s) %}{% endfor %}",
    "a block of one text many times": "{% set big = 'a' * 999999 %}{% set s %}"
    + MANY_TIMES
    + "{{ big }}{% endfor %}{% endset %}",
    "a block of plain text many times": "{% set s %}" + MANY_TIMES + "a" * 9999 + "{% endfor %}{% endset %}",
    "a block of a list many times": NS
    + "{% set big = ['a' * 999999] %}{% set s %}"
    + MANY_TIMES
    + "{{ big }}{% endfor %}{% endset %}",
    "lists in lists": NS + MANY + "{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
    "lists in lists as JSON": NS + "{% for i in range(18) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}"
    "{% for i in range(99) %}{% set s = ns.l | tojson %}{% endfor %}",
    "lists times a number": NS + MANY + "{% set ns.l = [ns.l] * 99 %}{% endfor %}",
    "dicts in dicts": NS + MANY + "{% set ns.d = {'a': ns.d, 'b': ns.d} %}{% endfor %}",
    "dicts in dicts by calls": NS + MANY + "{% set ns.d = dict(a=ns.d, b=ns.d) %}{% endfor %}",
    "tuples in tuples": NS + MANY + "{% set ns.d = (ns.d, ns.d) %}{% endfor %}",
    "equal lists in lists": NS
    + MANY
    + "{% set ns.l = [ns.l, ns.l] %}{% set ns.k = [ns.k, ns.k] %}{% endfor %}{{ ns.l == ns.k }}",
    "a list of lists of all": NS + MANY + "{% set ns.l = ns.l + ns.l %}{% endfor %}",
    "% width": "{{ '%999999999d' % 1 }}",
    "% variable width": "{{ '%*d' % (999999999, 1) }}",
    "% precision": "{{ '%.999999999f' % 1 }}",
    "format width": "{{ '{:999999999}'.format(1) }}",
    "format variable width": "{{ '{:{}}'.format(1, 999999999) }}",
    "format filter width": "{{ '%999999999d' | format(1) }}",
    "many widths": NS + MANY_TIMES + "{% set s = '%9999d' % 1 %}{% endfor %}",
    **{f"str.{name}": f"{{{{ 'a'.{name}(999999999) }}}}" for name in ("center", "ljust", "rjust", "zfill")},
    "str.expandtabs": "{{ '\\t'.expandtabs(999999999) }}",
    "str.expandtabs of many": "{{ ('\\t' * 99999).expandtabs(9999) }}",
    "str.translate": "{{ 'a'.translate({97: 'b'}) }}",
    "center": "{{ 'a' | center(999999999) }}",
    "center in map": "{{ ['a'] | map('center', 999999999) | join }}",
    "indent": "{{ ('\\n' * 9999) | indent(9999) }}",
    "indent by a number": "{{ 'a' | indent(999999999, true) }}",
    "tojson indent": "{{ [1] | tojson(indent=999999999) }}",
    "batch": "{{ [1] | batch(999999999, 0) | list }}",
    "slice": "{{ [1] | slice(999999999) | list }}",
    "join of map": "{{ range(99999) | map('string') | join('a' * 9999) }}",
    "sum of lists": "{{ ([[1]] * 99999) | sum(start=[]) }}",
    "power": "{{ 9 ** 999999999 }}",
    "power of powers": "{% set n = 9 ** 4000 %}{% set n = n * n * n * n * n * n %}{{ n // 3 }}",
    "long division": "{% set n = ('f' * 9999999) | int(0, 16) %}{{ n // 7 }}",
    "namespace": NS + "{% set ns.l = [ns] %}{{ ns }}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "doubling calls": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}"
    "{{ m(60) }}",
}


@pytest.mark.alone
@pytest.mark.parametrize("name", BOMBS)
def test_bomb(name: str) -> None:
    # Skip the conversations of up to two messages with which every template is probed.
    chat = template("{% if messages[2] %}" + BOMBS[name] + "{% endif %}", max_render_seconds=0.3)
    tracemalloc.start()
    try:
        started = time.monotonic()
        with pytest.raises(RequestError):
            chat.render([{"role": "user", "content": "a"}] * 3)
        seconds = time.monotonic() - started
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert seconds < 2
    assert peak_bytes < 300e6


@pytest.mark.parametrize("source", ["{{ 'a' | center(999999999) }}", "{{ 'a' ~ 'b' * 999999999 }}"])
def test_nothing_is_computed_when_a_template_is_compiled(source: str) -> None:
    with pytest.raises(RequestError, match="too large"):
        template("{% if messages[0] %}" + source + "{% endif %}").render([{"role": "user", "content": "a"}])


@pytest.mark.alone
def test_what_templates_do_is_within_the_limits() -> None:
    """A long conversation, processed several times with every operation that the limits check."""
    source = (
        "{% set ns = namespace(s='', l=[]) %}{% for m in messages %}{% set ns.l = ns.l + [m] %}{% endfor %}"
        "{% for m in ns.l %}{% set s = '[' ~ m.role ~ ']' %}{% set ns.s = ns.s + s %}"
        "{{ s + m.content | trim }}{{ '%s' % m.content }}{{ m.content.replace('b', 'cc') | upper }}"
        "{{ m.content.split(' ')[-1] }}{{ m | tojson }}{% endfor %}{{ ns.s | length }}"
    )
    messages = [{"role": "user", "content": "ab " * 300} for _ in range(500)]
    started = time.monotonic()
    text = template(source, max_render_seconds=60).render(messages).text
    assert text.endswith(str(500 * len("[user]")))
    assert time.monotonic() - started < 10
