"""Looking up the chat template of a model."""

import json

import pytest

import rushlight
from rushlight.chat import ChatTemplate, find_template
from rushlight.chat.formats import EndOfTextTurns, PlainTurns
from rushlight.errors import RushlightError, TemplateError

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture
def model(folder, tales):
    """A model whose files are in `folder`."""
    model = rushlight.load()
    model.folder = folder
    model.name = str(folder)
    return model


def text(template):
    try:
        return template.render(MESSAGES).text
    finally:
        if isinstance(template, ChatTemplate):
            template.close()


def write(folder, **values):
    (folder / "tokenizer_config.json").write_text(json.dumps(values))


def test_model_folder_is_the_loaded_folder(folder):
    assert rushlight.load(folder).folder == folder


def test_the_given_template_takes_precedence(model, folder, tmp_path):
    write(folder, chat_template="config")
    (folder / "chat_template.jinja").write_text("beside")
    file = tmp_path / "mine.jinja"
    file.write_text("mine {{ messages[0].content }}")
    assert text(find_template(model, "{{ 'text' }}")) == "text"
    assert text(find_template(model, file)) == text(find_template(model, str(file))) == "mine hi"
    assert text(find_template(model)) == "beside"
    (folder / "chat_template.jinja").unlink()
    assert text(find_template(model)) == "config"


def test_the_default_of_named_templates_is_used(model, folder):
    write(
        folder,
        chat_template=[{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}],
    )
    assert text(find_template(model)) == "plain"
    assert text(find_template(model, "tool_use")) == "tools"
    with pytest.raises(TemplateError, match=r"the name of one of the model's: default, tool_use"):
        find_template(model, "rag")


def test_named_templates_without_a_default_are_an_error(model, folder):
    write(folder, chat_template=[{"name": "a", "template": "x"}])
    with pytest.raises(TemplateError, match=r"named chat templates, but no default \(found a\)"):
        find_template(model)


@pytest.mark.parametrize("value", [3, [], [3], [{"name": "default"}], {"default": 3}])
def test_an_invalid_chat_template_value_is_an_error(model, folder, value):
    write(folder, chat_template=value)
    if value == []:
        assert isinstance(find_template(model), PlainTurns)
    else:
        with pytest.raises(TemplateError, match=r"tokenizer_config.json: chat_template is not a template"):
            find_template(model)


def test_special_tokens_are_passed_to_the_template(model, folder):
    show = "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ cls_token }}"
    assert text(find_template(model, show)) == "<|endoftext|>|<|endoftext|>||"
    write(folder, bos_token="<s>", eos_token={"content": "</s>", "lstrip": False}, pad_token=None)
    assert text(find_template(model, show)) == "<s>|</s>||"
    (folder / "special_tokens_map.json").write_text('{"bos_token": "<b>", "cls_token": {"content": "<c>"}}')
    assert text(find_template(model, show)) == "<b>|</s>||<c>"
    write(folder, bos_token="<s>", added_tokens_decoder={})
    assert text(find_template(model, show)) == "<s>|<|endoftext|>||"


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff", "not UTF-8"), (b"x" * (2 << 20), "too large"), (None, "not a regular file")],
)
def test_an_unreadable_template_file_is_an_error(model, tmp_path, content, message):
    path = tmp_path / "t.jinja"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(TemplateError, match=message):
        find_template(model, path)


def test_a_damaged_tokenizer_config_is_an_error(model, folder):
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(TemplateError, match=r"tokenizer_config.json: not JSON"):
        find_template(model)


def test_windows_line_ends_are_normalised(model, tmp_path):
    path = tmp_path / "t.jinja"
    path.write_bytes(b"{% if true %}\r\na\r\nb\r\n{% endif %}\r\n")
    assert text(find_template(model, path)) == "a\nb\n"


def test_a_model_without_a_template_uses_plain_turns(tales):
    template = find_template(tales)
    assert isinstance(template, PlainTurns)
    assert template.note.startswith("this model has no chat template and was not trained to chat")


@pytest.mark.parametrize(
    "config",
    [{"task_specific_params": {"conversational": {"max_length": 1000}}}, {"_name_or_path": "x/DialoGPT-small"}],
)
def test_dialogpt_uses_end_of_text_turns(model, folder, config):
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | config))
    template = find_template(model)
    assert isinstance(template, EndOfTextTurns)
    messages = [
        {"role": role, "content": content} for role, content in [("user", "a"), ("assistant", "b"), ("user", "c")]
    ]
    assert template.render(messages).text == "a<|endoftext|>b<|endoftext|>c<|endoftext|>"
    with rushlight.Chat(model, max_tokens=4) as chat:
        first = chat.send("a<|endoftext|>")
        assert first.prompt_ids.count(0) == 1
        second = chat.send("b")
        assert second.prompt_ids[: len(first.prompt_ids + first.ids) + 1] == [*first.prompt_ids, *first.ids, 0]
        chat.system_prompt = "x"
        with pytest.raises(TemplateError, match="no roles, and so no system prompt"):
            chat.send("c")


def test_gpt2_is_not_dialogpt(model, folder):
    config = json.loads((folder / "config.json").read_text())
    config["task_specific_params"] = {"text-generation": {"do_sample": True, "max_length": 50}}
    (folder / "config.json").write_text(json.dumps(config))
    assert isinstance(find_template(model), PlainTurns)


def test_the_published_dialogpt_template_renders_the_same(model, folder):
    write(folder, chat_template="{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}")
    assert text(find_template(model)) == EndOfTextTurns("<|endoftext|>").render(MESSAGES).text


def test_template_errors_name_the_file(model, tmp_path):
    path = tmp_path / "t.jinja"
    path.write_text("\n{% for")
    template = find_template(model, path)
    with pytest.raises(RushlightError, match=r"t.jinja: line 2 of the chat template: TemplateSyntax.*--chat-template"):
        template.render(MESSAGES)
    template.close()


def test_a_variable_may_have_any_other_name():
    assert (
        ChatTemplate("{{ a }}{{ messages[0].content }}", variables={"self": 1, "a": 2})
        .render([{"role": "user", "content": "x"}])
        .text
        == "2x"
    )
