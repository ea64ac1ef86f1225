"""Hostile templates end within a second and 128 MB, and the next template is unaffected."""

import os
import sys
import time
from pathlib import Path

import pytest

from rushlight.chat.sandbox import CPU_S, MEMORY_BYTES, TemplateSandbox
from rushlight.errors import TemplateError

MESSAGES = [{"role": "user", "content": "hello"}]

ESCAPES = {
    "attribute": "{{ ''.__class__ }}",
    "mro": "{{ ().__class__.__bases__[0].__subclasses__() }}",
    "item": "{{ ''['__class__'].mro() }}",
    "attr filter": "{{ ''|attr('__class__') }}",
    "map filter": "{{ ['']|map(attribute='__class__')|list }}",
    "format": "{{ '{0.__class__}'.format('') }}",
    "format map": "{{ '{x.__class__}'.format_map({'x': 1}) }}",
    "bound format": "{% set f = '{0.__class__.__init__}'.format %}{{ f(messages) }}",
    "globals of a function": "{{ raise_exception.__globals__ }}",
    "globals of the clock": "{{ strftime_now.__self__ }}",
    "code of a macro": "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "environment": "{{ self._TemplateReference__context.environment }}",
    "namespace": "{% set n = namespace(__class__=1) %}",
    "namespace item": "{% set n = namespace() %}{% set n._x = 1 %}",
    "class of dict": "{{ dict.__class__.__mro__ }}",
    "cycler": "{{ cycler.__init__.__globals__.os }}",
    "joiner": "{{ joiner.__init__.__globals__ }}",
    "lipsum": "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "generator": "{{ (messages|map('upper')).gi_frame }}",
    "list append": "{{ messages.append(1) }}",
    "dict update": "{{ messages[0].update({'role': 'system'}) }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "from import": "{% from 'os' import path %}",
    "extends": "{% extends 'base' %}",
    "unknown filter": "{{ ''|system }}",
    "unknown test": "{{ '' is evil }}",
    "do tag": "{% do messages %}",
}

GLUTTONS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops that write": "{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}",
    "repeat": "{{ 'x' * 10**10 }}",
    "repeat at run time": "{{ messages[0].content * 10**10 }}",
    "list repeat": "{{ (messages * 10**9)|length }}",
    "power": "{{ (messages|length + 8)**10**9 }}",
    "power as text": "{{ ((messages|length + 8)**3000000)|string|length }}",
    "center": "{{ messages[0].content|center(10**9) }}",
    "ljust": "{{ messages[0].content.ljust(10**10) }}",
    "zfill": "{{ messages[0].content.zfill(10**10) }}",
    "format width": "{{ '%1000000000d'|format(1) }}",
    "str.format width": "{{ '{:1000000000}'.format(1) }}",
    "indent": "{{ ('a\n' * 1000)|indent(10**7) }}",
    "replace": "{% set x = 'a' * 10**6 %}{{ x.replace('a', x) }}",
    "join": "{{ range(99999)|join('x' * 10**6) }}",
    "expandtabs": "{{ ('\t' * 1000).expandtabs(10**8) }}",
    "wordwrap": "{{ ('a ' * 10**6)|wordwrap(1, wrapstring='b' * 10**6) }}",
    "tojson indent": "{{ messages|tojson(indent=10**10) }}",
    "doubling": "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}{{ n.s }}",
    "doubling lists": (
        "{% set n = namespace(s=[1]) %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}{{ n.s|length }}"
    ),
    "batch": "{% for b in range(9)|batch(10**9, 0) %}{{ b|length }}{% endfor %}",
    "strftime": "{{ strftime_now('%1000000000Y') }}",
    "clock format": "{{ strftime_now('%c' * 10**7) }}",
    "striptags": "{{ ('<' * 10**6)|striptags }}",
    "too much text": "{% for i in range(2000) %}{{ 'x' * 1000 }}{% endfor %}",
}

BURNERS = {
    "macro": "{% macro m(n) %}{% for i in range(9) %}{{ m(n - 1) if n }}{% endfor %}{% endmacro %}{{ m(99) }}",
    "sort": "{% for i in range(99999) %}{{ range(99999)|sort(reverse=true)|length }}{% endfor %}",
    "groupby": "{% for i in range(99999) %}{{ range(99999)|groupby('real')|length }}{% endfor %}",
    "urlize": "{{ ('www.a.' * 10**6)|urlize }}",
    "slice": "{{ range(9)|slice(10**9)|list|length }}",
    "nested lists": (
        "{% set n = namespace(s=[]) %}{% for i in range(99999) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s }}"
    ),
    "lipsum": "{{ lipsum(n=10**6, min=99, max=100) }}",
}
"""More templates that only the time limit stops, after half a second each."""

KNOTS = {
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "recursive loop": "{% for m in messages recursive %}{{ loop([m]) }}{% endfor %}",
    "3,000 brackets": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "3,000 lists": "{{ " + "[" * 3000 + "]" * 3000 + " }}",
    "3,000 nots": "{{ " + "not " * 3000 + "1 }}",
    "3,000 sums": "{{ 1" + " + 1" * 30000 + " }}",
    "25 nested loops": "".join(f"{{% for a{i} in messages %}}" for i in range(25)) + "{% endfor %}" * 25,
    "200 nested ifs": "{% if 1 %}" * 200 + "{% endif %}" * 200,
    "not closed": "{% for m in messages %}",
    "not a tag": "{% frobnicate %}",
    "not an expression": "{{ 1 + }}",
    "not a string": "{{ 'abc }}",
    "stray end": "{% endif %}",
    "a block twice": "{% block a %}{% endblock %}{% block a %}{% endblock %}",
    "generation not closed": "{% generation %}",
    "wrong arguments": "{{ raise_exception() }}",
    "division by zero": "{{ 1 / 0 }}",
    "undefined attribute": "{{ nothing.at.all }}",
    "a megabyte of tags": "{% if 1 %}a{% endif %}" * 50000,
}


def run(renderer, template):
    """Returns the text or error, the elapsed seconds, and the peak memory of the process in bytes (0 if it ended)."""
    start = time.perf_counter()
    try:
        [outcome] = renderer.render(template, [MESSAGES], {})
    except TemplateError as error:
        outcome = error
    seconds = time.perf_counter() - start
    peak = 0
    if renderer._process is not None and sys.platform == "linux":
        status = Path(f"/proc/{renderer._process.pid}/status").read_text()
        peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
    return outcome, seconds, peak


LIMIT_S = 6
"""A second on an idle machine: the limit is half a second of CPU time."""


@pytest.mark.parametrize("template", ESCAPES.values(), ids=ESCAPES)
def test_templates_cannot_escape_the_sandbox(renderer, template):
    """Attributes hidden by the sandbox render empty, or are an error."""
    outcome, _, _ = run(renderer, template)
    if not isinstance(outcome, TemplateError):
        assert outcome in {"", "[Undefined]"}
    assert run(renderer, "{{ messages[0].content }}")[0] == "hello"


@pytest.mark.parametrize("template", GLUTTONS.values(), ids=GLUTTONS)
def test_time_and_memory_are_bounded(renderer, template):
    outcome, seconds, peak = run(renderer, template)
    assert isinstance(outcome, TemplateError) or len(outcome) < 1 << 20
    assert seconds < LIMIT_S
    assert peak <= MEMORY_BYTES
    assert run(renderer, "{{ messages[0].content }}")[0] == "hello"


@pytest.mark.parametrize("template", KNOTS.values(), ids=KNOTS)
def test_templates_that_cannot_be_compiled_or_run_are_an_error(renderer, template):
    """Two of them are merely large, and may render."""
    outcome, seconds, peak = run(renderer, template)
    assert isinstance(outcome, TemplateError) or template in {KNOTS["200 nested ifs"], KNOTS["a megabyte of tags"]}
    assert seconds < LIMIT_S
    assert peak <= MEMORY_BYTES
    assert run(renderer, "{{ messages[0].content }}")[0] == "hello"


@pytest.mark.slow
@pytest.mark.parametrize("template", [*ESCAPES.values(), *GLUTTONS.values(), *BURNERS.values(), *KNOTS.values()])
def test_a_second_from_a_cold_start(template):
    """The CPU time of the renderer process, including its start, is below a second on any machine."""
    before = os.times()
    with TemplateSandbox() as cold:
        _, _, peak = run(cold, template)
    after = os.times()
    assert after.children_user - before.children_user + after.children_system - before.children_system < 1
    assert peak <= MEMORY_BYTES <= 128 * 10**6


def test_the_message_of_raise_exception(renderer):
    with pytest.raises(TemplateError) as error:
        renderer.render("a\nb\n{{ raise_exception('Only pairs!') }}", [MESSAGES], {}, file="t.jinja")
    assert str(error.value).startswith("t.jinja: line 3 of the chat template: Only pairs!")
    assert error.value.code == "invalid_chat_template"


def test_an_undefined_variable_renders_empty(renderer):
    assert renderer.render("[{{ nothing }}|{{ messages[0].nothing }}]", [MESSAGES], {}) == ["[|]"]


def test_an_error_cannot_control_the_terminal(renderer):
    with pytest.raises(TemplateError) as error:
        renderer.render("{{ raise_exception('\x1b[2J' * 1000) }}", [MESSAGES], {})
    assert "\x1b" not in str(error.value)
    assert len(str(error.value)) < 3000


def test_a_process_that_was_stopped_is_replaced(renderer):
    renderer.render("x", [MESSAGES], {})
    before = renderer._process.pid
    with pytest.raises(TemplateError, match=f"was stopped: it exceeded {CPU_S:g} s or 128 MB"):
        renderer.render(GLUTTONS["nested loops"], [MESSAGES], {})
    assert renderer.render("y", [MESSAGES], {}) == ["y"]
    assert renderer._process.pid != before


def test_a_killed_process_is_replaced_for_the_next_request():
    with TemplateSandbox() as renderer:
        renderer.render("x", [MESSAGES], {})
        renderer._process.kill()
        renderer._process.wait()
        with pytest.raises(TemplateError, match="was stopped"):
            renderer.render("x", [MESSAGES], {})
        assert renderer.render("y", [MESSAGES], {}) == ["y"]


def test_a_process_ends_with_its_sandbox():
    with TemplateSandbox() as renderer:
        renderer.render("x", [MESSAGES], {})
        process = renderer._process
    assert process.poll() is not None


def test_the_wall_clock_limit_without_a_cpu_timer(monkeypatch):
    """Windows has no CPU timer."""
    from rushlight.chat import sandbox as render

    monkeypatch.setattr(render, "CPU_S", 0)
    monkeypatch.setattr(render, "WALL_S", 0.5)
    with TemplateSandbox() as renderer:
        renderer.render("x", [MESSAGES], {})
        outcome, seconds, _ = run(renderer, GLUTTONS["nested loops"])
    assert isinstance(outcome, TemplateError)
    assert seconds < LIMIT_S


def test_a_process_that_does_not_start(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with TemplateSandbox() as renderer, pytest.raises(TemplateError, match=r"does not start \(found exit code 1\)"):
        renderer.render("x", [MESSAGES], {})


def test_jinja_is_not_installed(monkeypatch):
    monkeypatch.setattr("rushlight.chat.sandbox.find_spec", lambda name: None)
    with TemplateSandbox() as renderer, pytest.raises(TemplateError, match="need jinja2, which is not installed"):
        renderer.render("x", [MESSAGES], {})


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_process_has_no_environment_and_no_files_and_jinja_stays_in_it(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    with TemplateSandbox() as renderer:
        renderer.render("x", [MESSAGES], {})
        folder = Path(f"/proc/{renderer._process.pid}")
        assert b"secret" not in (folder / "environ").read_bytes()
        limits = {line[:25].strip(): line[26:46].strip() for line in (folder / "limits").read_text().splitlines()}
        assert (limits["Max open files"], limits["Max file size"]) == ("3", "0")
        assert limits["Max address space"] == str(MEMORY_BYTES)
        assert os.getpgid(renderer._process.pid) != os.getpgrp()
    assert "jinja2" not in sys.modules
