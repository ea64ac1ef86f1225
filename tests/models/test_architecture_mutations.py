"""Wrong models must fail the comparison with the recordings; a comparison that passes them would prove nothing.

Each mutation is a plausible mistake of an architecture's file or of a backend, and passes every check of names and
shapes. A new architecture adds its fixtures to the lists, and rows of its own.
"""

import re

import numpy as np
import pytest
from architecture_fixtures import NAMES, TOLERANCE, Fixture

from rushlight.backends.reference import ReferenceBackend
from rushlight.models import Rope, TextConfig, gpt_neox, gptj, phi
from rushlight.models.gemma import Gemma, GemmaDecoderLayer
from rushlight.models.gemma2 import Gemma2DecoderLayer
from rushlight.models.gemma3_text import Gemma3Attention
from rushlight.models.llama import Attention, DecoderLayer
from rushlight.models.olmo2 import Olmo2DecoderLayer
from rushlight.models.qwen3 import Qwen3Attention
from rushlight.models.stablelm import HeadNorms, NormedHeadsAttention, StableLmDecoderLayer
from rushlight.nn import Embedding

MARGIN = 20
"""How many times the tolerance a mutation must be off."""


@pytest.fixture
def clearly_wrong(tmp_path):
    def clearly_wrong(fixture):
        return fixture.error(fixture.load(tmp_path, device="reference", dtype="f32")) > MARGIN * TOLERANCE

    return clearly_wrong


# Operations


def mutant(operation):
    """A mutation of an operation of the reference backend: a function of the original and its arguments."""

    def decorate(wrong):
        original = getattr(ReferenceBackend, operation)

        def mutate(monkeypatch):
            monkeypatch.setattr(ReferenceBackend, operation, lambda ops, *args, **kw: wrong(original, ops, *args, **kw))

        mutate.__name__ = wrong.__name__
        return mutate

    return decorate


@mutant("rotary")
def other_pairs_are_rotated(rotary, ops, x, angles, n_head, *, interleaved=False):
    return rotary(ops, x, angles, n_head, interleaved=not interleaved)


@mutant("rotary")
def rotated_backwards(rotary, ops, x, angles, n_head, *, interleaved=False):
    if n_head == 4:  # queries
        cos, sin = np.split(angles, 2, axis=1)
        angles = np.concatenate([cos, -sin], axis=1)
    return rotary(ops, x, angles, n_head, interleaved=interleaved)


@mutant("rotary")
def not_rotated(rotary, ops, x, angles, n_head, *, interleaved=False):
    return x


@mutant("rotary")
def only_queries_are_rotated(rotary, ops, x, angles, n_head, *, interleaved=False):
    return rotary(ops, x, angles, n_head, interleaved=interleaved) if n_head == 4 else x


@mutant("angles")
def angles_without_scale(compute, ops, positions, frequencies, scale=1.0):
    return compute(ops, positions, frequencies)


@mutant("angles")
def angles_with_scale_squared(compute, ops, positions, frequencies, scale=1.0):
    return compute(ops, positions, frequencies, scale**2)


@mutant("angles")
def frequencies_in_bf16(compute, ops, positions, frequencies, scale=1.0):
    exact = frequencies.array
    frequencies.array = (exact.view(np.uint32) + 0x8000 & 0xFFFF0000).view(np.float32)
    angles = compute(ops, positions, frequencies, scale)
    frequencies.array = exact
    return angles


@mutant("attention")
def scores_with_scale_squared(attention, ops, *args, scale, **options):
    return attention(ops, *args, scale=scale**2, **options)


@mutant("attention")
def scores_without_scale(attention, ops, *args, scale, **options):
    return attention(ops, *args, scale=1.0, **options)


def other_windows(change, monkeypatch):
    """Changes the windows of the config, which attention and the KV cache share."""
    windows = TextConfig.windows.fget
    changed = property(lambda config: tuple(window and change(window) for window in windows(config)))
    monkeypatch.setattr(TextConfig, "windows", changed)


def window_one_longer(monkeypatch):
    other_windows(lambda window: window + 1, monkeypatch)


def window_one_shorter(monkeypatch):
    other_windows(lambda window: window - 1, monkeypatch)


def no_window(monkeypatch):
    other_windows(lambda window: None, monkeypatch)


@mutant("attention")
def heads_tiled_instead_of_repeated(attention, ops, q, k, v, batch, *, n_head, **options):
    """Query head h reads key head h % K instead of h · K // H."""
    n_kv = k.shape[1] * n_head // q.shape[1]
    order = np.arange(n_head).reshape(-1, n_kv).T.ravel()
    heads = q.reshape(len(q), n_head, -1)[:, order].reshape(q.shape)
    out = attention(ops, heads, k, v, batch, n_head=n_head, **options).reshape(len(q), n_head, -1)
    return out[:, np.argsort(order)].reshape(len(q), -1)


@mutant("rms_norm")
def mean_subtracted(rms_norm, ops, x, weight, eps, offset=0.0):
    groups = x.reshape(len(x), -1, weight.array.size)
    return rms_norm(ops, (groups - groups.mean(axis=-1, keepdims=True)).reshape(x.shape), weight, eps, offset)


@mutant("rms_norm")
def rms_norm_with_another_epsilon(rms_norm, ops, x, weight, eps, offset=0.0):
    return rms_norm(ops, x, weight, 100 * eps, offset)


@mutant("rms_norm")
def rms_norm_with_another_offset(rms_norm, ops, x, weight, eps, offset=0.0):
    return rms_norm(ops, x, weight, eps, 1.0 - offset)


@mutant("layer_norm")
def mean_not_subtracted(layer_norm, ops, x, weight, bias, eps):
    y = x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + np.float32(eps)) * weight.array
    return y if bias is None else y + bias.array


@mutant("layer_norm")
def layer_norm_with_another_epsilon(layer_norm, ops, x, weight, bias, eps):
    return layer_norm(ops, x, weight, bias, 100 * eps)


@mutant("attention")
def scores_not_capped(attention, ops, *args, softcap=None, **options):
    return attention(ops, *args, **options)


@mutant("attention")
def no_slopes(attention, ops, *args, slopes=None, **options):
    return attention(ops, *args, **options)


@mutant("attention")
def slopes_in_order(attention, ops, *args, slopes=None, **options):
    slopes.array = np.sort(slopes.array)[::-1]
    return attention(ops, *args, slopes=slopes, **options)


@mutant("split")
def heads_split_contiguously(split, ops, x, sizes, *, groups=1):
    return split(ops, x, sizes)


@mutant("embedding")
def first_rows_not_skipped(embedding, ops, ids, table, first_row=0):
    return embedding(ops, ids, table)


@mutant("activation")
def other_gelu(activation, ops, x, name):
    return activation(ops, x, {"gelu_erf": "gelu_tanh", "gelu_tanh": "gelu_erf"}.get(name, name))


@mutant("activation")
def logits_not_capped(activation, ops, x, name):
    return x if name == "tanh" else activation(ops, x, name)


ROTARY = ["llama", "mistral", "qwen2", "qwen3", "smollm3", "olmo2", "granite", "phi3", "stablelm", "starcoder2"]
"""A fixture of each architecture with rotary embeddings and fewer heads of keys than of queries."""
RMS = [name for name in ROTARY if name not in ("stablelm", "starcoder2")]
LAYER_NORM = ["stablelm", "stablelm_12b", "starcoder2"]
SCALED = ["llama_yarn", "llama_longrope", "llama_longrope_long", "phi3_longrope", "phi3_longrope_long"]
WINDOWS = [
    *("mistral", "mistral_63", "mistral_64", "mistral_65", "ministral", "qwen2_window", "qwen3_window"),
    *("smollm3_window", "phi3", "starcoder2"),
]

GEMMA = ["gemma", "gemma2", "gemma3_text"]
NORMED_BY_LAYER = ["gpt_neox", "gpt_neo", "phi", "opt", "gpt_bigcode", "bloom", "gptj"]
FUSED_BY_HEAD = ["gpt_neox", "gpt_neox_serial", "gpt_bigcode_mha", "bloom", "bloom_six_heads"]
GELU = [*GEMMA, "gpt_neox", "gpt_neox_serial", "gpt_neo", "phi", "opt_post_norm", "gpt_bigcode", "bloom", "gptj"]
WINDOWS += ["gemma2", "gemma3_text", "gemma3_text_types", "gpt_neo", "gpt_neo_square"]

OPERATIONS = {
    other_pairs_are_rotated: [
        *(name for name in ROTARY if name != "stablelm"),  # which rotates one pair
        *(*GEMMA, "gpt_neox", "gpt_neox_serial", "phi", "gptj", "gptj_whole"),
    ],
    rotated_backwards: ROTARY,
    not_rotated: [*ROTARY, *GEMMA, "gpt_neox", "phi", "gptj"],
    only_queries_are_rotated: ROTARY,
    frequencies_in_bf16: ["llama", "llama_llama3", "phi3_longrope"],
    angles_without_scale: SCALED,
    angles_with_scale_squared: SCALED,
    scores_with_scale_squared: [*ROTARY, *GEMMA, "gpt_neox", "phi", "opt", "gpt_bigcode", "bloom", "gptj"],
    scores_without_scale: [*ROTARY, *GEMMA, "gpt_neox", "phi", "opt", "gpt_bigcode", "bloom", "gptj"],
    scores_not_capped: ["gemma2"],
    logits_not_capped: ["gemma2", "gemma3_text_types"],
    no_slopes: ["bloom", "bloom_six_heads"],
    slopes_in_order: ["bloom_six_heads"],
    heads_split_contiguously: FUSED_BY_HEAD,
    first_rows_not_skipped: ["opt", "opt_post_norm"],
    other_gelu: GELU,
    window_one_longer: WINDOWS,
    window_one_shorter: WINDOWS,
    no_window: WINDOWS,
    heads_tiled_instead_of_repeated: [*ROTARY, "gemma2", "gemma3_text"],
    mean_subtracted: RMS + GEMMA,
    rms_norm_with_another_epsilon: RMS + GEMMA,
    rms_norm_with_another_offset: RMS + GEMMA,
    mean_not_subtracted: LAYER_NORM + NORMED_BY_LAYER,
    layer_norm_with_another_epsilon: LAYER_NORM + NORMED_BY_LAYER,
}
"""Mutations of an operation -> the fixtures that must notice."""


@pytest.mark.parametrize(("mutate", "name"), [(each, name) for each, names in OPERATIONS.items() for name in names])
def test_operation_computed_wrongly(mutate, name, monkeypatch, clearly_wrong):
    mutate(monkeypatch)
    assert clearly_wrong(Fixture(name))


# Rotary frequencies


@pytest.mark.parametrize("name", [*ROTARY, *GEMMA, "gpt_neox", "phi", "gptj"])
@pytest.mark.parametrize("theta", [0.5, 1.5])
def test_another_base(name, theta, monkeypatch, clearly_wrong):
    if name == "stablelm":
        name = "stablelm_half"  # the only frequency of `stablelm` is 1 whatever the base
    frequencies = Rope.frequencies
    monkeypatch.setattr(Rope, "frequencies", lambda rope, n: frequencies(rope, n) ** np.float32(theta))
    assert clearly_wrong(Fixture(name))


# Config


def rope(**settings):
    return lambda config: config["rope_parameters"].update(settings)


def exchange_lists(config):
    settings = config["rope_parameters"]
    settings["short_factor"], settings["long_factor"] = settings["long_factor"], settings["short_factor"]


def exchange_ropes(config):
    settings = config["rope_parameters"]
    settings["full_attention"], settings["sliding_attention"] = (
        settings["sliding_attention"],
        settings["full_attention"],
    )


def scale_every_rope(config):
    config["rope_parameters"]["sliding_attention"] |= {"rope_type": "linear", "factor": 4.0}


def scale_no_rope(config):
    config["rope_parameters"]["full_attention"] = {"rope_type": "default", "rope_theta": 20000.0}


def invert_rotating_layers(config):
    config["no_rope_layers"] = [1 - flag for flag in config["no_rope_layers"]]


CONFIGS = [
    *((name, {"rope_parameters": {"rope_theta": 10000.0}}) for name in NAMES if name.startswith("llama_l")),
    ("llama_yarn", {"rope_parameters": {"rope_theta": 10000.0}}),
    ("llama_linear", rope(factor=2.0)),
    ("llama_llama3", rope(low_freq_factor=2.0)),
    ("llama_llama3", rope(high_freq_factor=8.0)),
    ("llama_llama3", rope(original_max_position_embeddings=600)),
    ("llama_yarn", rope(original_max_position_embeddings=600)),
    ("llama_yarn", rope(beta_fast=1.5)),
    ("llama_longrope", exchange_lists),
    ("llama_longrope_long", exchange_lists),
    ("phi3_longrope", exchange_lists),
    ("phi3_longrope_long", exchange_lists),
    ("phi3_longrope", {"max_position_embeddings": 300}),
    ("phi3_longrope", rope(attention_factor=1.0)),
    ("stablelm", rope(partial_rotary_factor=0.5)),
    ("stablelm_half", rope(partial_rotary_factor=1.0)),
    ("stablelm_12b", rope(partial_rotary_factor=0.6)),
    ("mistral", {"sliding_window": 4096}),
    ("ministral", {"layer_types": ["sliding_attention", "full_attention"]}),
    ("ministral", {"layer_types": ["sliding_attention", "sliding_attention"]}),
    ("qwen2_window", {"layer_types": None, "max_window_layers": 0}),
    ("qwen2_window", {"layer_types": None, "use_sliding_window": False}),
    ("qwen3_window", {"layer_types": None, "max_window_layers": 0}),
    ("smollm3", invert_rotating_layers),
    ("smollm3", {"no_rope_layers": [1, 1, 1, 1, 1]}),
    ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 5}),
    ("smollm3_window", {"layer_types": None, "use_sliding_window": False}),
    *(("granite", {key: 1.0}) for key in ("embedding_multiplier", "residual_multiplier", "logits_scaling")),
    ("granite", {"attention_multiplier": 1.0}),
    ("granite", {"attention_multiplier": 10**-0.5}),
    ("granite", {"logits_scaling": 1 / 3}),
    ("starcoder2", {"hidden_act": "gelu"}),
    ("llama", {"hidden_act": "gelu"}),
    ("gemma2", {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}),
    ("gemma2", {"query_pre_attn_scalar": 10}),
    ("gemma2", {"attn_logit_softcapping": None}),
    ("gemma2", {"final_logit_softcapping": None}),
    ("gemma3_text", {"query_pre_attn_scalar": 10}),
    ("gemma3_text", {"layer_types": None, "sliding_window_pattern": 2}),
    ("gemma3_text", exchange_ropes),
    ("gemma3_text", scale_every_rope),
    ("gemma3_text", scale_no_rope),
    ("gpt_neox", {"use_parallel_residual": False}),
    ("gpt_neox_serial", {"use_parallel_residual": True}),
    ("gpt_neox", rope(partial_rotary_factor=0.25)),
    ("gpt_neox_serial", rope(partial_rotary_factor=0.34)),  # four channels instead of three
    ("gpt_neox", {"hidden_act": "gelu_new"}),
    ("gpt_neo", {"attention_types": None, "attention_layers": ["local", "global", "local"]}),
    ("gpt_neo", {"attention_types": None, "attention_layers": ["global", "local", "global"]}),
    ("phi", rope(partial_rotary_factor=0.4)),
    ("opt_post_norm", {"activation_function": "relu"}),
    ("gpt_bigcode_mha", {"scale_attn_weights": True}),
    ("bloom_six_heads", {"apply_residual_connection_post_layernorm": False}),
    ("gptj", {"rotary_dim": 6}),
]
"""Values of keys, or edits, of which each must be noticed."""


@pytest.mark.parametrize(("name", "edit"), CONFIGS)
def test_config_not_honoured(name, edit, clearly_wrong):
    fixture = Fixture(name)
    before = repr(fixture.config)
    edit(fixture.config) if callable(edit) else fixture.config.update(edit)
    assert repr(fixture.config) != before
    assert clearly_wrong(fixture)


# Weights


def exchange_gate_and_up(fixture):
    for name in [name for name in fixture.tensors if name.endswith("gate_proj.weight")]:
        up = name.replace("gate_proj", "up_proj")
        fixture.tensors[name], fixture.tensors[up] = fixture.tensors[up], fixture.tensors[name]


def exchange_fused_gate_and_up(fixture):
    for name in [name for name in fixture.tensors if name.endswith("gate_up_proj.weight")]:
        gate, up = np.split(fixture.tensors[name], 2)
        fixture.tensors[name] = np.concatenate([up, gate])


def exchange_keys_and_values(fixture):
    for name in [name for name in fixture.tensors if ".k_proj." in name]:
        value = name.replace(".k_proj.", ".v_proj.")
        fixture.tensors[name], fixture.tensors[value] = fixture.tensors[value], fixture.tensors[name]


def fused_heads_split_evenly(fixture):
    """[q | k | v] read as H + 2K heads, of which each third is q, k or v."""
    for name in [name for name in fixture.tensors if name.endswith("qkv_proj.weight")]:
        fixture.tensors[name] = fixture.tensors[name].reshape(-1, 2, 8, 34).swapaxes(0, 1).reshape(-1, 34)


def exchange_norms(fixture):
    for name in [name for name in fixture.tensors if name.endswith("input_layernorm.weight")]:
        other = name.replace("input", "post_attention")
        fixture.tensors[name], fixture.tensors[other] = fixture.tensors[other], fixture.tensors[name]


def exchange_sandwich_norms(fixture):
    """The norms after attention and before the MLP."""
    for name in [name for name in fixture.tensors if name.endswith("post_attention_layernorm.weight")]:
        other = name.replace("post_attention", "pre_feedforward")
        fixture.tensors[name], fixture.tensors[other] = fixture.tensors[other], fixture.tensors[name]


def untie(fixture):
    [(head, table)] = fixture.architecture.rules.tied.items()
    [stored] = [name for name in fixture.tensors if name.endswith(table)]
    fixture.config["tie_word_embeddings"] = False
    fixture.tensors[head] = np.random.default_rng(0).permutation(fixture.tensors[stored])


def tie(fixture):
    [(head, _)] = fixture.architecture.rules.tied.items()
    fixture.config["tie_word_embeddings"] = True
    del fixture.tensors[head]


WEIGHTS = {
    exchange_gate_and_up: [*(name for name in RMS if name != "phi3"), "stablelm", *GEMMA],
    exchange_fused_gate_and_up: ["phi3"],
    exchange_keys_and_values: [*(name for name in ROTARY if name != "phi3"), *GEMMA, "gpt_neo", "phi", "opt", "gptj"],
    fused_heads_split_evenly: ["phi3"],
    exchange_norms: [*(name for name in ROTARY if name != "olmo2"), *GEMMA, "gpt_neox", "gpt_neox_serial", "bloom"],
    exchange_sandwich_norms: ["gemma2", "gemma3_text"],
    untie: [
        *GEMMA,
        "gpt_neo",
        "opt",
        "gpt_bigcode",
        "bloom",
        "llama",
        "qwen2",
        "qwen3",
        "smollm3",
        "granite",
        "stablelm_half",
        "starcoder2",
    ],
    tie: ["llama_mha", "mistral", "qwen2_window", "olmo2", "phi3", "stablelm", "starcoder2_plain", "gpt_neox"],
}
"""Mutations of the weights -> the fixtures that must notice."""


@pytest.mark.parametrize(("mutate", "name"), [(each, name) for each, names in WEIGHTS.items() for name in names])
def test_weights_misread(mutate, name, clearly_wrong):
    fixture = Fixture(name)
    mutate(fixture)
    assert clearly_wrong(fixture)


WITHOUT_EFFECT = re.compile(
    r"vision_tower|multi_modal_projector"
    r"|(decoder\.layers\.\d|smollm3_window model\.layers\.[03])\.self_attn\.k_proj\.bias"
)
"""Tensors that are left out, and the biases of keys that are not rotated: they add the same to all scores of a row."""


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_tensor_of_zeros(name, clearly_wrong):
    fixture = Fixture(name)
    unnoticed = []
    for path, tensor in list(fixture.tensors.items()):
        fixture.tensors[path] = np.zeros_like(tensor)
        if not clearly_wrong(fixture):
            unnoticed.append(path)
        fixture.tensors[path] = tensor
    assert [path for path in unnoticed if not WITHOUT_EFFECT.search(f"{name} {path}")] == []


# Modules


def add_to_what_the_norm_returns(monkeypatch):
    def call(self, x, angles, batch):
        x = self.input_layernorm(x)
        x = x + self.self_attn(x, angles, batch)
        x = self.post_attention_layernorm(x)
        return x + self.mlp(x)

    monkeypatch.setattr(DecoderLayer, "__call__", call)


def both_branches_in_parallel(monkeypatch):
    def call(self, x, angles, batch):
        attention = self.self_attn(self.input_layernorm(x), angles, batch)
        return x + attention + self.mlp(self.post_attention_layernorm(x))

    monkeypatch.setattr(DecoderLayer, "__call__", call)


def norms_before_the_branches(monkeypatch):
    def call(self, x, angles, batch):
        x = x + self.self_attn(self.post_attention_layernorm(x), angles, batch)
        return x + self.mlp(self.post_feedforward_layernorm(x))

    monkeypatch.setattr(Olmo2DecoderLayer, "__call__", call)


def heads_normalised_after_rotation(monkeypatch):
    rotary = ReferenceBackend.rotary

    def rotate_first(self, x):
        """Projections whose normalisation the next two rotations, of queries and of keys, make up for."""
        norms = [self.q_norm, self.k_norm] if isinstance(self, Qwen3Attention) else [self.q_layernorm, self.k_layernorm]

        def rotate(ops, x, angles, n_head, **options):
            return norms.pop(0)(rotary(ops, x, angles, n_head, **options))

        monkeypatch.setattr(ReferenceBackend, "rotary", rotate)
        return Attention.project(self, x)

    monkeypatch.setattr(Qwen3Attention, "project", rotate_first)
    monkeypatch.setattr(NormedHeadsAttention, "project", rotate_first)


def gemma_heads_not_normalised(monkeypatch):
    monkeypatch.setattr(Gemma3Attention, "project", Attention.project)


def heads_not_normalised(monkeypatch):
    monkeypatch.setattr(Qwen3Attention, "project", Attention.project)
    monkeypatch.setattr(NormedHeadsAttention, "project", Attention.project)


def one_norm_for_all_heads(monkeypatch):
    def call(self, x):
        return self.ops.join([self.norms[0](head) for head in self.ops.split(x, len(self.norms))])

    monkeypatch.setattr(HeadNorms, "__call__", call)


def embeddings_not_scaled(monkeypatch):
    monkeypatch.setattr(Embedding, "__call__", lambda self, ids: self.ops.embedding(ids, self.weight, self.first_row))


def head_scaled_too(monkeypatch):
    """The head as the scaled embeddings."""
    readout = Gemma.readout
    monkeypatch.setattr(Gemma, "readout", lambda self, x: readout(self, x) * self.embed_tokens.scale)


def norms_before_the_sums(monkeypatch):
    """Gemma 2's layer as the first Gemma's."""
    monkeypatch.setattr(Gemma2DecoderLayer, "__call__", GemmaDecoderLayer.__call__)


def one_norm_for_both_branches(monkeypatch):
    def call(self, x, angles, batch):
        normed = self.input_layernorm(x)
        return x + self.attention(normed, angles, batch) + self.mlp(normed)

    monkeypatch.setattr(gpt_neox.Layer, "__call__", call)


def mlp_after_attention(monkeypatch):
    def phi_layer(self, x, angles, batch):
        x = x + self.self_attn(self.input_layernorm(x), angles, batch)
        return x + self.mlp(self.input_layernorm(x))

    def gptj_block(self, x, angles, batch):
        x = x + self.attn(self.ln_1(x), angles, batch)
        return x + self.mlp(self.ln_1(x))

    monkeypatch.setattr(StableLmDecoderLayer, "__call__", phi_layer)
    monkeypatch.setattr(phi.Layer, "__call__", phi_layer)
    monkeypatch.setattr(gptj.Block, "__call__", gptj_block)


def heads_of_keys_first(monkeypatch):
    """GPT-BigCode's [q | k | v] as [k | v | q]."""

    def split(self, x, sizes, *, groups=1):
        k, v, q = original(self, x, sizes[1:] + sizes[:1], groups=groups)
        return q, k, v

    original = ReferenceBackend.split
    monkeypatch.setattr(ReferenceBackend, "split", split)


MODULES = {
    embeddings_not_scaled: GEMMA,
    head_scaled_too: ["gemma", "gemma3_text"],
    norms_before_the_sums: ["gemma2", "gemma3_text"],
    one_norm_for_both_branches: ["gpt_neox"],
    mlp_after_attention: ["phi", "gptj", "stablelm_12b"],
    heads_of_keys_first: ["gpt_bigcode"],
    add_to_what_the_norm_returns: ["llama", "mistral", "qwen2", "qwen3", "smollm3", "phi3", "stablelm", "starcoder2"],
    both_branches_in_parallel: ["llama", "mistral", "qwen2", "qwen3", "smollm3", "phi3", "stablelm", "starcoder2"],
    norms_before_the_branches: ["olmo2"],
    heads_normalised_after_rotation: ["qwen3", "qwen3_128", "stablelm_12b", "stablelm_normed"],
    heads_not_normalised: ["qwen3", "qwen3_128", "stablelm_12b", "stablelm_normed"],
    one_norm_for_all_heads: ["stablelm_12b", "stablelm_normed"],
    gemma_heads_not_normalised: ["gemma3_text"],
}
"""Mutations of modules -> the fixtures that must notice."""


@pytest.mark.parametrize(("mutate", "name"), [(each, name) for each, names in MODULES.items() for name in names])
def test_module_computed_wrongly(mutate, name, monkeypatch, clearly_wrong):
    mutate(monkeypatch)
    assert clearly_wrong(Fixture(name))
