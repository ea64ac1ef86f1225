"""Finds a model's chat template, and renders conversations with it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from rushlight.chat.formats import EndOfTextTurns, PlainTurns
from rushlight.chat.provenance import Rendered, compare, shaded
from rushlight.chat.sandbox import TemplateSandbox
from rushlight.checkpoint import read_json_object
from rushlight.errors import RequestError, RushlightError, SourceError, TemplateError, printable_name
from rushlight.files.limits import MAX_TEMPLATE_BYTES, MAX_TOKENIZER_CONFIG_BYTES
from rushlight.files.text_file import read_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from rushlight.runtime.model import Model
    from rushlight.text import Tokenizer

__all__ = ["ChatTemplate", "TurnFormat", "find_template", "turn_end_ids"]

MORE_TEMPLATES = "additional_chat_templates"
"""The folder next to the weights in which transformers 5 keeps named templates: tool_use.jinja is `tool_use`."""

SPECIAL_TOKENS = "bos_token eos_token unk_token sep_token pad_token cls_token mask_token".split()
"""The special tokens that transformers 5 passes to templates by name."""

RESERVED = ("messages", "add_generation_prompt")
"""The variables that each rendering sets."""


class TurnFormat(Protocol):
    """A format that renders conversations as prompts.

    Attributes:
        name: a short description.
        note: a warning to show before the conversation; None for none.
        stop: stop strings, with which the model would begin the user's next turn.
    """

    @property
    def name(self) -> str: ...
    @property
    def note(self) -> str | None: ...
    @property
    def stop(self) -> tuple[str, ...]: ...

    def render(self, messages: Sequence[Mapping[str, Any]]) -> Rendered:
        """The conversation as text, up to the beginning of the answer.

        Raises:
            TemplateError: the format does not support the conversation.
        """


class ChatTemplate:
    """A Jinja template, rendered as in transformers, in a sandbox with limits on time and memory.

    Rendering is stateless; threads may share a template.

    Args:
        text: the source of the template.
        variables: its variables besides the messages, such as `bos_token`, `tools`, `documents`; JSON values.
        file: its file, for error messages.
        now: the time for `strftime_now`; None for the time of each rendering.
        name: a short description.

    Raises:
        RequestError: a variable is one of RESERVED.
    """

    note = None
    stop: tuple[str, ...] = ()

    def __init__(
        self,
        text: str,
        *,
        variables: Mapping[str, Any] | None = None,
        file: str | os.PathLike[str] | None = None,
        now: datetime | None = None,
        name: str = "a chat template",
    ) -> None:
        if reserved := [key for key in RESERVED if key in (variables or {})]:
            raise RequestError(
                f"{reserved[0]} is not a variable of the chat template to set: the conversation sets it",
                remedy=f"leave out {reserved[0]}",
            )
        self.name = name
        self.text = text
        self._variables = {"tools": None, "documents": None, **(variables or {})}
        self._file = file
        self._now = now
        self._sandbox = TemplateSandbox()

    def render(self, messages: Sequence[Mapping[str, Any]], *, answer: bool = True) -> Rendered:
        """The conversation as text, with `answer` as `add_generation_prompt`.

        Raises:
            TemplateError: the template is malformed, exceeds a limit, or raises an error on the conversation.
        """
        text, shadow = self._sandbox.render(
            self.text,
            [messages, shaded(messages)],
            {**self._variables, "add_generation_prompt": answer},
            now=self._now,
            file=self._file,
        )
        if text is None:
            raise TemplateError("the chat template rendered no text", file=self._file)
        return Rendered(text, compare(text, shadow), tuple(_strings(messages)))

    def close(self) -> None:
        """Ends the rendering subprocess until the next rendering."""
        self._sandbox.close()


def find_template(
    model: Model,
    template: str | os.PathLike[str] | None = None,
    *,
    variables: Mapping[str, Any] | None = None,
    now: datetime | None = None,
) -> TurnFormat:
    """The conversation format of a model.

    The first of these: the argument `template`; chat_template.jinja next to the weights; the named template `default`;
    DialoGPT's format, if the model's name or config identifies one; plain turns. Named templates are
    additional_chat_templates/NAME.jinja next to the weights, and `chat_template` in tokenizer_config.json: a string,
    which is `default`, or a list of objects with name and template.

    Args:
        model: a loaded model.
        template: the source of a template, the name of one of the model's, or a file.
        variables: variables besides messages and special tokens: `tools`, `enable_thinking`, ...
        now: the time for `strftime_now`; None for the time of each rendering.

    Raises:
        TemplateError: the argument is not a template, or a file next to the weights is invalid.
    """
    folder = model.folder
    config = _object(folder, "tokenizer_config.json")
    named = _named_templates(config, folder)
    file: Path | None = None
    if template is not None:
        if isinstance(template, str) and ("{{" in template or "{%" in template):
            text, name = template, "a custom chat template"
        elif isinstance(template, str) and template in named:
            text, name, file = _named(template, named)
        else:
            file = Path(template)
            text, name = _read(file, named), printable_name(os.fspath(template))
    elif folder is not None and os.path.lexists(folder / "chat_template.jinja"):
        file = folder / "chat_template.jinja"
        text, name = _read(file, {}), "chat_template.jinja next to the weights"
    elif named:
        if "default" not in named:
            raise TemplateError(
                "the model has named chat templates, but no default",
                file=folder,
                found=", ".join(named),
                remedy="choose one with --chat-template, or template= in Python",
            )
        text, name, file = _named("default", named)
    elif _is_dialogpt(model):
        end = _special_tokens(model, config).get("eos_token")
        if end is None:
            raise TemplateError(
                f"DialoGPT's format needs the end-of-text token, and the tokenizer has no token {model.eos_ids[0]}",
                file=folder,
                remedy="set eos_token in tokenizer_config.json",
            )
        return EndOfTextTurns(end)
    else:
        return PlainTurns()
    tokens = _special_tokens(model, config)
    return ChatTemplate(text, variables={**tokens, **(variables or {})}, file=file, now=now, name=name)


def turn_end_ids(template: TurnFormat, tokenizer: Tokenizer, vocab_size: int) -> tuple[int, ...]:
    """The tokens with which a template ends an answer; empty if unknown. A checkpoint's config may not list them."""
    if not isinstance(template, ChatTemplate):
        return ()
    example = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    try:
        rendered = template.render(example, answer=False)
    except RushlightError:  # it does not support this conversation
        return ()
    if not rendered.typed:
        return ()
    after = rendered.text[rendered.typed[-1][1] :].lstrip()
    end = max((token for token in tokenizer.added_tokens() if after.startswith(token)), key=len, default="")
    return tuple(i for i in tokenizer.encode(end, allow_special=True) if i < vocab_size)


def _object(folder: Path | None, name: str) -> dict[str, Any]:
    """The JSON object in a file next to the weights; empty if the file does not exist."""
    if folder is None or not os.path.lexists(folder / name):
        return {}
    return read_json_object(folder / name, max_bytes=MAX_TOKENIZER_CONFIG_BYTES, error=TemplateError)


class _Named(NamedTuple):
    """A named template of the model: its file, and its text unless it is the entire file."""

    file: Path | None
    text: str | None = None


def _named_templates(config: Mapping[str, Any], folder: Path | None) -> dict[str, _Named]:
    """The model's templates by name; a separate file takes precedence over tokenizer_config.json."""
    file = None if folder is None else folder / "tokenizer_config.json"
    named = {name: _Named(file, text) for name, text in _templates_in(config, folder).items()}
    separate = [] if folder is None else sorted((folder / MORE_TEMPLATES).glob("*.jinja"))
    return named | {path.stem: _Named(path) for path in separate}


def _named(name: str, named: Mapping[str, _Named]) -> tuple[str, str, Path | None]:
    """The text of a named template, a description, and its file."""
    file, text = named[name]
    if text is None and file is not None:
        return _read(file, {}), f"{MORE_TEMPLATES}/{printable_name(file.name)} next to the weights", file
    where = "chat_template" if name == "default" else f'"{printable_name(name)}"'
    return text or "", f"{where} in tokenizer_config.json", file


def _templates_in(config: Mapping[str, Any], folder: Path | None) -> dict[str, str]:
    """The templates in a tokenizer_config.json by name; a single one is `default`."""
    found = config.get("chat_template")
    if found is None:
        return {}
    if isinstance(found, str):
        return {"default": found}
    members = [{"name": key, "template": text} for key, text in found.items()] if isinstance(found, dict) else found
    if not isinstance(members, list) or not all(
        isinstance(member, dict) and isinstance(member.get("name"), str) and isinstance(member.get("template"), str)
        for member in members
    ):
        raise TemplateError(
            "chat_template is not a template",
            file=None if folder is None else folder / "tokenizer_config.json",
            expected="a string, or a list of objects with name and template",
        )
    return {member["name"]: member["template"] for member in members}


def _read(path: Path, named: Mapping[str, object]) -> str:
    """The text of a template file; the error lists the `named` templates that could have been meant."""
    with suppress(RuntimeError):  # "~" of an unknown user: reading then reports that there is no such file
        path = path.expanduser()
    try:
        text = read_text(path, max_bytes=MAX_TEMPLATE_BYTES, error=TemplateError)
    except SourceError as error:
        names = f", or the name of one of the model's: {', '.join(map(printable_name, named))}" if named else ""
        raise TemplateError(
            f"cannot read the chat template: {error.message}",
            file=path,
            found=error.found,
            remedy=f"pass a Jinja file, or the template itself{names}",
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")  # as Python's text files do, and so transformers


def _special_tokens(model: Model, config: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens by name; by default eos_token and bos_token are the model's end-of-text token."""
    tokens: dict[str, str] = {}
    # As in transformers: the older file takes precedence unless the newer one also lists the added tokens.
    older = {} if "added_tokens_decoder" in config else _object(model.folder, "special_tokens_map.json")
    for values in (older, config):
        for key in SPECIAL_TOKENS:
            value = values.get(key)
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                tokens.setdefault(key, text)
    if model.eos_ids and model.tokenizer is not None and model.tokenizer.has_token(model.eos_ids[0]):
        end = model.tokenizer.decode(model.eos_ids[:1])
        tokens.setdefault("eos_token", end)
        tokens.setdefault("bos_token", end)
    return tokens


def _is_dialogpt(model: Model) -> bool:
    """Whether name or config.json identify a DialoGPT."""
    config = _object(model.folder, "config.json")
    purposes = config.get("task_specific_params")
    names = [PurePath(str(name)).name.lower() for name in (model.name, config.get("_name_or_path"))]
    named = any("dialogpt" in name for name in names)
    return bool(model.eos_ids) and (named or (isinstance(purposes, dict) and "conversational" in purposes))


def _strings(value: Any) -> list[str]:
    """All strings in one or several messages."""
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [text for item in items for text in _strings(item)]
