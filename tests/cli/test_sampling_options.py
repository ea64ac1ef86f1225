"""Flags, defaults, validation, signatures and documentation of a sampling setting follow from its declaration."""

import dataclasses
import inspect
import re
from pathlib import Path

import pytest

import rushlight
from rushlight.cli.app import load_command
from rushlight.cli.collect import Option, collect
from rushlight.cli.commands.chat import WITHOUT
from rushlight.cli.sampling_options import scalar_settings
from rushlight.errors import RequestError
from rushlight.generation.sampling import params as declared
from rushlight.generation.sampling.params import SETTINGS, SamplingParams
from rushlight.generation.sampling.setting import integer, setting, settings_of
from rushlight.jobs.requests import FIELDS, INTEGERS

DEFAULTS = {field.name: field.default for field in dataclasses.fields(SamplingParams)}
WITH_FLAGS = [name for name, each in SETTINGS.items() if each.flags]
OWN_FLAGS = {"--prompt", "--stop", "--beams", "--echo", "--stats", "--json", "--debug", "--model"}
LOAD_FLAGS = {"--device", "--dtype", "--threads", "--exact", "--offline", "--revision", "--port", "--draft", "--copy"}
LOAD_FLAGS |= {"--bos", "--context"}
INVALID = {int: -1, float: float("nan"), bool: "yes", str: 3, dict: [3]}


def options(command):
    return {param.name: param for param in load_command(command).params}


def test_every_setting_is_declared():
    assert list(SETTINGS) == list(DEFAULTS)
    assert [name for name in SETTINGS if name not in WITH_FLAGS] == ["stop_ids"]


@pytest.mark.parametrize("name", WITH_FLAGS)
def test_the_flag_has_the_declared_default_and_help(name):
    each, option = SETTINGS[name], options("generate")[name]
    assert option.default == DEFAULTS[name]
    assert option.help.removesuffix(" Repeatable.") == each.help
    assert [*option.opts, *option.secondary_opts] == [word for flag in each.flags for word in flag.split("/")]
    assert option.metavar == (each.metavar or None)


def test_every_flag_of_generate_is_a_setting_or_listed():
    flags = {max(param.opts, key=len) for param in load_command("generate").params if param.opts[0].startswith("-")}
    of_settings = {max(SETTINGS[name].flags, key=len).partition("/")[0] for name in WITH_FLAGS}
    assert flags == of_settings | OWN_FLAGS | LOAD_FLAGS


def test_chat_has_other_defaults_and_fewer_settings():
    found = options("chat")
    assert (found["max_tokens"].default, found["temperature"].default) == (256, None)
    assert found["temperature"].help.endswith(" Default: the author's, or 0.7.")
    assert [name for name in WITH_FLAGS if name not in found] == list(WITHOUT)


@pytest.mark.parametrize("name", SETTINGS)
def test_an_invalid_value_is_refused_with_the_declared_range(name):
    valid = SETTINGS[name].range
    value = INVALID[valid.type] if name != "stop_ids" else [-1]
    assert not valid.contains(value)
    with pytest.raises(RequestError, match=re.escape(f"{name} is ") + ".*" + re.escape(f"expected {valid.expected}")):
        SamplingParams(**{name: value})


@pytest.mark.parametrize("name", SETTINGS)
def test_the_default_is_valid(name):
    assert DEFAULTS[name] is None or SETTINGS[name].range.contains(DEFAULTS[name])


def test_signatures_and_docstring_list_every_setting():
    signature = inspect.signature(rushlight.Model.generate).parameters
    for name, each in SETTINGS.items():
        assert signature[name].default == DEFAULTS[name]
        assert re.search(rf"^ +{name}( \(.*\))?: {re.escape(each.help)}$", SamplingParams.__doc__, re.MULTILINE)


def test_beam_search_takes_the_declared_settings():
    taken = {name for name, each in SETTINGS.items() if each.in_beam_search}
    assert taken == set(SETTINGS) & set(inspect.signature(rushlight.Model.beam_search).parameters) - {"n"}


def test_a_job_reads_every_setting():
    assert set(SETTINGS) <= set(FIELDS)
    assert set(INTEGERS) == {"prompt", *(name for name, each in SETTINGS.items() if each.range.type is int)}


def test_scalar_settings_of_a_conversation():
    scalars = scalar_settings(WITHOUT)
    assert {"max_tokens", "temperature", "seed", "ignore_eos", "speculate"} <= set(scalars)
    assert not {"n", "logit_bias", "regex"} & set(scalars)


def test_the_documentation_lists_every_flag():
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    section = page.partition("## rushlight generate\n")[2].partition("\n## ")[0]
    assert [name for name in WITH_FLAGS if SETTINGS[name].flag not in section] == []


def test_a_new_setting_needs_only_a_field(monkeypatch):
    """A new setting gets its flag, validation and documentation from its field."""

    @dataclasses.dataclass(frozen=True)
    class More:
        top_n: int = setting(5, integer(1, 9), "Keep N tokens.", metavar="N", flags="--top-n", group="Sampling")

    from rushlight.cli import sampling_options as flags

    monkeypatch.setattr(flags, "SETTINGS", settings_of(More))
    monkeypatch.setattr(flags, "DEFAULTS", {"top_n": 5})
    received = {}

    @flags.sampling_options()
    def command(*, settings: dict):
        received.update(settings)

    [parameter] = inspect.signature(command).parameters.values()
    assert (parameter.name, parameter.default) == ("top_n", 5)
    command(top_n=7)
    assert received == {"top_n": 7}
    assert declared.documented("{settings}\n", More) == "Attributes:\n        top_n (N): Keep N tokens.\n"


def test_collected_options_keep_their_place_and_are_converted():
    @collect("both", {"x": Option(int, 1), "y": Option(str, "a", str.upper)})
    def command(first: int = 0, *, both: "Missing", last: bool = False):  # noqa: F821 - imported for type checkers only
        return first, both, last

    assert list(inspect.signature(command).parameters) == ["first", "x", "y", "last"]
    received = []
    collect("both", {"x": Option(int, 1), "y": Option(str, "a", str.upper)})(lambda *, both: received.append(both))(
        x=2, y="b"
    )
    assert received == [{"x": 2, "y": "B"}]
