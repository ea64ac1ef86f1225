"""Cases from newcomers and a fuzzer, in Python and in pages: requests, settings, patches, names."""

import inspect
import json
import pickle
import warnings

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import rushlight
from rushlight import Generation, Request, RushlightError, demo
from rushlight.backends import open_backend
from rushlight.checkpoint import display_name, open_headers
from rushlight.errors import DeviceError, DtypeError, PortError, RequestError, SourceError
from rushlight.porting.scaffold.port import scaffold
from rushlight.viewer import tree_page

PROMPT = "The king"
DEVICES = ["cpu", "reference"]


@pytest.fixture(scope="module")
def model():
    return rushlight.load()


# Requests


def test_prompts_may_be_str_or_ids_and_an_invalid_one_does_not_stop_the_others(model):
    ids = model.tokenizer.encode(PROMPT)
    wrong = [
        Request(PROMPT, settings={"x": 1}),
        Request(PROMPT, settings=5),
        Request(PROMPT, max_token=3),
        Request(PROMPT, stop=np.array(["x", 5], object)),
        5,
        None,
        b"The king",
        np.array(3),
        {"prompt": PROMPT},
        [PROMPT, "A dog"],
    ]
    results = dict(model.generate_many([PROMPT, ids, *wrong, Request(PROMPT, settings=None)]))
    right = [results[i] for i in (0, 1, len(wrong) + 2)]
    assert {result.text for result in right} == {model.generate(PROMPT).text}
    assert [type(results[i + 2]) for i in range(len(wrong))] == [RequestError] * len(wrong)
    assert "did you mean max_tokens?" in str(results[4])
    assert "settings must map names to values (found 5)" in str(results[3])


def test_a_request_takes_settings_by_keyword(model):
    expected = model.generate(PROMPT, max_tokens=5, temperature=0.8, seed=3, stop=["x"]).text
    by_keyword = Request(PROMPT, max_tokens=5, temperature=0.8, seed=3, stop=["x"])
    assert by_keyword == Request(PROMPT, ["x"], {"max_tokens": 5, "temperature": 0.8, "seed": 3})
    assert by_keyword == pickle.loads(pickle.dumps(by_keyword))
    assert [result.text for _, result in model.generate_many([by_keyword])] == [expected]


@pytest.mark.parametrize("requests", [PROMPT, b"The king", 5, None], ids=repr)
def test_invalid_collections_of_prompts_are_refused_at_once(model, requests):
    with pytest.raises(RequestError, match="use `generate` for one"):
        model.generate_many(requests)


@pytest.mark.parametrize("several", [["a b", "c d"], [[1, 2], [3]], np.array([[1, 2]])], ids=repr)
def test_several_prompts_in_place_of_one_mention_generate_many(model, several):
    for take in (model.logits, model.generate, model.stream, lambda given: rushlight.lens(model, given)):
        with pytest.raises(RequestError, match="`generate_many` takes several"):
            take(several)


@pytest.mark.parametrize("pair", ["ab", ("a", "b", "c"), 5, ("a", 5), (None, "a")], ids=repr)
def test_an_invalid_pair_is_reported_after_the_scores_before_it(model, pair):
    scores = model.score_many([(PROMPT, " was"), pair])
    assert next(scores).ids
    with pytest.raises(RequestError):
        next(scores)
    with pytest.raises(RequestError, match="pairs"):
        next(model.score_many(5))


# Settings


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("max_token", "max_tokens"),
        ("topk", "top_k"),
        ("temprature", "temperature"),
        ("stops", "stop"),
        ("max_new_tokens", "max_tokens"),
        ("n_predict", "max_tokens"),
        ("num_predict", "max_tokens"),
        ("do_sample", "temperature"),
        ("stop_sequences", "stop"),
        ("repeat_penalty", "repetition_penalty"),
        ("num_return_sequences", "n"),
    ],
)
def test_an_unknown_setting_suggests_a_similar_one(model, given, meant):
    chat = rushlight.Chat(model, template="{% for m in messages %}{{ m.content }}{% endfor %}")
    for call in (model.generate, model.stream, model.astream, chat.send):
        with pytest.raises(RequestError) as caught:
            call(PROMPT, **{given: 3})
        assert str(caught.value) == f"unknown setting {given!r}; did you mean {meant}?"


@pytest.mark.parametrize("name", ["beams", "num_beams"])
def test_beams_lead_to_beam_search(model, name):
    with pytest.raises(RequestError, match=rf"^{name} is not a sampling setting: use model\.beam_search"):
        model.generate(PROMPT, **{name: 4})


def test_an_unknown_setting_lists_all_without_private_classes(model):
    with pytest.raises(RequestError, match=r"unknown setting 'odd', .* max_tokens, temperature, .*, regex") as caught:
        model.generate(PROMPT, odd=3)
    assert "SamplingParams" not in str(caught.value)
    [(_, error)] = model.generate_many([Request(PROMPT, settings={"stop": ["x"]})])
    assert "stop is not a setting: pass it as a separate argument" in str(error)


def test_settings_are_in_the_signatures_for_completion(model):
    for function in (model.generate, model.stream, model.astream, Request):
        parameters = inspect.signature(function).parameters
        assert {"prompt", "stop", "max_tokens", "temperature", "json_schema"} <= set(parameters)
        assert not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        assert parameters["max_tokens"].default == 100


def test_numpy_numbers_are_accepted_without_a_warning(model):
    settings = {"temperature": 0.5, "top_p": 0.5, "repetition_penalty": 1.5, "max_tokens": 4, "seed": 1}
    expected = model.generate(PROMPT, **settings).ids
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in (np.float16, np.float32, np.float64):
            given = {name: kind(value) if isinstance(value, float) else value for name, value in settings.items()}
            assert model.generate(PROMPT, **given).ids == expected
        for value in (np.float32("inf"), np.float32("nan"), np.float16(-1), 10**400):
            with pytest.raises(RequestError, match="temperature is"):
                model.generate(PROMPT, temperature=value)


# Errors of this package instead of errors of Python


@pytest.mark.parametrize("text", [None, 5, b"The king", np.array(3), ["The", 5], [None]], ids=repr)
def test_perplexity_takes_text_or_ids(model, text):
    with pytest.raises(
        RequestError,
        match=r"expected a text as a string, an iterable of its pieces, or token ids|expected a prompt as text",
    ):
        model.perplexity(text)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"device": None}, DeviceError),
        ({"device": ["cpu"]}, DeviceError),
        ({"exact": "yes"}, DeviceError),
        ({"dtype": None}, DtypeError),
        ({"source": 5}, SourceError),
        ({"source": []}, SourceError),
        ({"port": 5}, PortError),
        ({"draft": 5}, SourceError),
        ({"source": demo.folder(), "revision": 5}, SourceError),
    ],
    ids=str,
)
def test_load_reports_an_invalid_argument(arguments, error):
    with pytest.raises(error):
        rushlight.load(**arguments)


def test_other_functions_with_a_source_report_it_too(model):
    for call in (
        lambda: rushlight.inspect([]),
        lambda: rushlight.open_checkpoint(3),
        lambda: rushlight.check(None),
        lambda: rushlight.verify(model, 5),
    ):
        with pytest.raises(SourceError):
            call()


def test_pickling_a_model_has_a_remedy(model):
    with pytest.raises(TypeError, match=r"load it again with rushlight\.load"):
        pickle.dumps(model)


@pytest.mark.parametrize("key", ["eos_token_id", "pad_token_id", "bos_token_id"])
def test_minus_one_means_no_token(make_gpt2, key):
    folder = make_gpt2(**{key: -1})
    model = rushlight.load(folder)
    assert model.eos_ids == (() if key == "eos_token_id" else (256,))
    assert len(model.generate([1, 2], max_tokens=3).ids) == 3


def test_minus_one_in_a_generation_config(make_gpt2, caplog):
    folder = make_gpt2(files={"generation_config.json": {"eos_token_id": [-1, 7]}})
    assert rushlight.load(folder).eos_ids == (7,)
    assert "eos_token_id -1 means no token: left out" in caplog.text


# Patches


def test_patches_accept_the_same_patterns_as_traces(model):
    paths = [f"h.{i}.attn" for i in range(model.config.n_layer)]
    plain = model.logits(PROMPT)
    with model.patch(dict.fromkeys(paths, lambda x: 0 * x)):
        each = model.logits(PROMPT)
    with model.patch({"h.*.attn": lambda x: 0 * x}), model.trace("h.*.attn") as trace:
        matched = model.logits(PROMPT)
    assert np.array_equal(matched, each)
    assert not np.array_equal(matched, plain)
    assert not any(trace[path].any() for path in paths)
    with model.patch({"h.0.*": lambda x: x, "*.attn": lambda x: x + 1, "h.0.attn": lambda x: x - 1}):
        first_as_it_was = model.logits(PROMPT)  # each gets what the one before it returned
    with model.patch({f"h.{i}.attn": lambda x: x + 1 for i in range(1, model.config.n_layer)}):
        assert np.allclose(first_as_it_was, model.logits(PROMPT), atol=1e-4)


@pytest.mark.parametrize(
    ("patches", "message"),
    [
        ({"h.0.attn": np.zeros(3)}, r"the patch of 'h\.0\.attn' is not a function \(found ndarray\)"),
        ({"h.*.attn": 5}, "is not a function"),
        (["h.0.attn"], "patches must map paths to functions"),
        ({"h.*.atn": abs}, r"no such module: 'h\.\*\.atn'; did you mean 'h\..\.attn'\?"),
        ({5: abs}, "expected the path of a module"),
    ],
    ids=str,
)
def test_an_invalid_patch_is_refused_before_anything_runs(model, patches, message):
    with pytest.raises(RequestError, match=message), model.patch(patches):
        pytest.fail("it was let in")


@pytest.mark.parametrize("made", [lambda x: x[0], lambda x: None, lambda x: "no", lambda x: [[1], [2, 3]]])
def test_a_patch_of_a_wrong_shape_is_an_error_of_this_package(model, made):
    refused = pytest.raises(RushlightError, match=r"the patch of h\.0 (changed the shape|must return numbers)")
    with model.patch({"h.0": made}), refused:
        model.logits(PROMPT)
    assert isinstance(model.generate(PROMPT, max_tokens=2), Generation)


def test_a_trace_names_modules_by_paths(model):
    with pytest.raises(RequestError, match="expected the path of a module"), model.trace(["h.0"]):
        pass


# Weights


@pytest.mark.parametrize("device", DEVICES)
def test_the_values_of_a_weight_come_from_the_backend(make_gpt2, device):
    folder = make_gpt2()
    attn = rushlight.load(folder, device=device).module.h[0].attn.c_attn
    with safe_open(folder / "model.safetensors", "numpy") as file:
        for name in ("weight", "bias"):
            weight, expected = getattr(attn, name), file.get_tensor(f"transformer.h.0.attn.c_attn.{name}")
            values = attn.ops.weight_values(weight)
            assert (values.dtype, values.shape) == (np.float32, expected.shape)
            assert np.array_equal(values, expected)
            values[:] = 0  # a copy
            assert np.array_equal(attn.ops.weight_values(weight), expected)
            for read in (np.asarray, np.array, lambda weight: np.ones(3) @ weight):
                with pytest.raises(TypeError):
                    read(weight)


@pytest.mark.parametrize("device", DEVICES)
def test_weights_refuse_arithmetic_on_every_device(make_gpt2, device):
    attn = rushlight.load(make_gpt2(), device=device).module.h[0].attn.c_attn
    x = open_backend(device).from_numpy(np.ones((2, 192), np.float32))
    for weight in (attn.bias, attn.weight):
        for compute in (
            lambda w: 2.0 * w,
            lambda w: w + 1,
            lambda w: np.ones(192, np.float32) * w,
            lambda w: w * np.ones(192, np.float32),
            lambda w: x * w,
            lambda w: x + w,
        ):
            with pytest.raises(TypeError):
                compute(weight)


RMS_PORT = """
from dataclasses import dataclass
import numpy as np
from rushlight.models import PretrainedModel
from rushlight.nn import NameRules, Role, Slot

@dataclass
class Config:
    @classmethod
    def from_json(cls, values, *, file):
        return cls()
    @classmethod
    def from_tensors(cls, tensors, *, file):
        return cls()

class Norm(PretrainedModel):
    config_type, rules = Config, NameRules()
    def __init__(self, config):
        self.weight = Slot((8,), Role.VECTOR)
    def __call__(self, x):
        values = self.ops.to_numpy(x)
        return self.ops.from_numpy(values / np.sqrt((values**2).mean(-1, keepdims=True)) * GAIN)

ARCHITECTURE = Norm
"""


@pytest.mark.parametrize(
    "gain", ["self.ops.weight_values(self.weight)", "np.asarray(self.weight)", "self.weight", "2.0 * self.weight"]
)
def test_a_port_that_reads_a_gain_behaves_the_same_on_both_devices(tmp_path, gain):
    weight, x = np.arange(1, 9, dtype=np.float32), np.arange(16, dtype=np.float32).reshape(2, 8)
    save_file({"weight": weight}, tmp_path / "model.safetensors")
    (tmp_path / "port.py").write_text(RMS_PORT.replace("GAIN", gain))
    outcomes = []
    for device in DEVICES:
        norm = rushlight.load_module(tmp_path, port=tmp_path / "port.py", device=device)
        try:
            outcomes.append(norm.ops.to_numpy(norm(norm.ops.from_numpy(x))))
        except TypeError:
            outcomes.append(None)
    if "weight_values" in gain:
        for outcome in outcomes:
            assert np.allclose(outcome, x / np.sqrt((x**2).mean(-1, keepdims=True)) * weight, rtol=1e-6)
    else:
        assert outcomes == [None, None]


# The device that computed, and names in shared files


@pytest.mark.parametrize(
    ("device", "dtype", "computed"),
    [("reference", "f32", "reference"), ("cpu", "f64", "reference"), ("cpu", "f32", "cpu")],
)
def test_the_device_names_the_hardware_that_computed(device, dtype, computed):
    model = rushlight.load(device=device, dtype=dtype)
    assert model.device == computed
    assert repr(model) == f"<Model tales: 3,554,304 parameters, {computed}, {dtype}>"


def test_a_checkpoint_is_shown_by_its_name_without_a_path(tmp_path, monkeypatch):
    folder = tmp_path / "gpt2"
    folder.mkdir()
    for name in ("model.safetensors", "other.safetensors"):
        (folder / name).touch()
    assert display_name(str(folder)) == "gpt2"
    assert display_name(f"{folder}/") == "gpt2"
    assert display_name(str(folder / "other.safetensors")) == "other.safetensors"
    assert display_name(str(folder / "model.safetensors")) == "gpt2/model.safetensors"
    assert display_name("/nowhere/at/all/gone") == "gone"
    assert display_name("openai-community/gpt2") == "openai-community/gpt2"
    assert display_name("https://example.org/a/b.safetensors?token=secret") == "b.safetensors"
    monkeypatch.chdir(folder)
    assert display_name(".") == "gpt2"


def test_pages_and_reports_contain_no_path(make_gpt2, tmp_path):
    folder = make_gpt2("net")
    page = tree_page(rushlight.inspect(folder))
    assert str(tmp_path) not in page
    assert "<title>net · rushlight</title>" in page
    assert '"source":"net"' in page
    assert rushlight.load(folder).name == "net"


def test_the_test_of_a_port_contains_no_absolute_path(make_gpt2, tmp_path):
    folder = make_gpt2("net")
    for port, source in (
        (tmp_path / "my_model.py", 'Path(__file__).parent / "net"'),
        (tmp_path / "ports" / "my_model.py", 'Path(__file__).parent / "../net"'),
        (tmp_path / "a" / "b" / "my_model.py", 'os.environ["CHECKPOINT"]  # the path of net'),
    ):
        with open_headers(folder) as checkpoint:
            written = scaffold(checkpoint, port)
        assert f"SOURCE = {source}\n" in written.test
        assert ("import os\n" in written.test) == ("CHECKPOINT=PATH pytest" in written.test) == ("environ" in source)
        assert str(tmp_path) not in written.test + written.module


def test_a_saved_conversation_names_the_model_without_its_path(make_gpt2, tmp_path):
    chat = rushlight.Chat(
        rushlight.load(make_gpt2("net")), template="{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    chat.save(tmp_path / "chat.json")
    assert json.loads((tmp_path / "chat.json").read_text())["model"] == "net"


def test_the_embedded_model_has_its_own_name():
    assert rushlight.load().name == "tales"
    assert display_name(str(demo.folder())) == "demo"
