"""What the common model types are that are not built in, for error messages, and which built-in type is near."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from rushlight.checkpoint import read_config
from rushlight.errors import ConfigError
from rushlight.loading.families import NAME_IT, PORT_IT, family, for_source
from rushlight.models import ARCHITECTURES
from rushlight.models.recognition import architecture_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rushlight.checkpoint import Checkpoint

__all__ = ["LIST_THEM", "NEAR_TYPES", "NearType", "describe_type", "model_type_of", "refusal", "why_not"]

LIST_THEM = "`rushlight models` lists what is built in"

DECODER = "a decoder"
"""The kind that `rushlight port` is for."""
ENCODERS = ("an encoder", "a model of images", "a model of audio")
"""Kinds that can be ported too, to be called as modules."""


class NearType(NamedTuple):
    """A model type that is not built in.

    Attributes:
        kind: to complete "qwen2_moe is ...".
        near: the built-in type that is most similar; "" if there is none.
    """

    kind: str
    near: str


_KINDS = {
    "a mixture-of-experts model": """arctic dbrx deepseek_v2:llama deepseek_v3:llama ernie4_5_moe glm4_moe gpt_oss
        granitemoe:granite granitemoeshared:granite jetmoe kimi_k2 minimax minimax_m2 mixtral:mistral olmoe:olmo2
        phimoe:phi3 qwen2_moe:qwen2 qwen3_moe:qwen3""",
    "a mixture of experts with linear attention": "qwen3_next:qwen3 qwen3_5_moe:qwen3",
    "a model of images and text": """aya_vision blip blip-2 chameleon florence2 fuyu gemma4:gemma3_text git glm4v
        idefics idefics2:mistral idefics3:llama internvl:qwen2 janus kosmos-2 llama4:llama llava:llama llava_next:llama
        llava_onevision:qwen2 mistral3:mistral mllama:llama molmo paligemma:gemma phi3_v:phi3 pixtral:mistral
        qwen2_5_vl:qwen2 qwen2_vl:qwen2 qwen3_vl:qwen3 smolvlm:llama""",
    "a model of images, audio and text": """gemma3n:gemma3_text phi4_multimodal:phi3 phi4mm:phi3 qwen2_5_omni:qwen2
        qwen3_omni_moe:qwen3""",
    "a model of images": "beit clip convnext deit dinov2 resnet siglip swin vit",
    "a model of audio": "hubert musicgen speecht5 vits wav2vec2 wavlm",
    "a model of audio and text": "granite_speech:granite qwen2_audio:qwen2 ultravox:llama voxtral:mistral",
    "an encoder-decoder model": """bart bigbird_pegasus blenderbot blenderbot-small encoder-decoder fsmt led longt5
        m2m_100 marian mbart mt5 mvp nllb-moe pegasus pegasus_x plbart prophetnet switch_transformers t5 t5gemma umt5
        whisper""",
    "an encoder": """albert bert big_bird camembert deberta deberta-v2 distilbert electra ernie esm eurobert funnel
        layoutlm longformer mobilebert modernbert mpnet nomic_bert rembert roberta roformer squeezebert xlm xlm-roberta
        xlm-roberta-xl xlnet""",
    "a state-space model": "falcon_mamba mamba mamba2 rwkv rwkv7",
    "a mixture of attention and a state-space model": """bamba falcon_h1 granitemoehybrid:granite jamba lfm2 nemotron_h
        plamo2 qwen3_5:qwen3 recurrent_gemma:gemma zamba zamba2""",
    DECODER: """apertus:llama arcee:llama baichuan:llama biogpt bitnet:llama chatglm codegen:gptj cohere:llama
        cohere2:llama ctrl diffllama:llama ernie4_5:llama exaone:llama exaone4:llama falcon:gpt_neox glm:llama
        glm4:llama gpt_neox_japanese:gpt_neox gptsan-japanese helium:llama hunyuan_v1_dense:qwen3
        internlm:llama internlm2:llama internlm3:llama minicpm:llama minicpm3
        ministral:mistral mpt:bloom nanochat:llama nemotron:llama olmo:llama
        olmo3:olmo2 openai-gpt:gpt2 persimmon:gpt_neox qwen:qwen2 seed_oss:qwen2 vaultgemma:gemma2 xglm:opt""",
}

NEAR_TYPES = {
    model_type: NearType(kind, near)
    for kind, words in _KINDS.items()
    for model_type, _, near in (word.partition(":") for word in words.split())
}
"""model_type -> what it is. Types that are unknown here may still be ported."""


def describe_type(model_type: str) -> str | None:
    """A sentence about a model type that is not built in; None if it is unknown here.

    "qwen2_moe is a mixture-of-experts model, which rushlight does not run; the dense qwen2 is built in"
    """
    known = NEAR_TYPES.get(model_type)
    if known is None:
        return None
    why = " that is not built in" if known.kind == DECODER else ", which rushlight does not run"
    what = f"{model_type} is {known.kind}{', which does not generate text' if known.kind in ENCODERS else why}"
    if known.near not in ARCHITECTURES:
        return what
    if known.kind == DECODER:
        return f"{what}; the most similar built-in type is {known.near}"
    adjective = "dense" if "experts" in known.kind else "text-only" if "and text" in known.kind else "similar"
    return f"{what}; the {adjective} {known.near} is built in"


def refusal(model_type: object, names: Iterable[str]) -> tuple[str, str]:
    """Why a checkpoint cannot run, and the next step.

    Args:
        model_type: of its config.json; None if there is none.
        names: of its tensors.
    """
    found = family(names)
    if isinstance(model_type, str) and (sentence := describe_type(model_type)):
        kind = NEAR_TYPES[model_type].kind
        use = "--port" if kind == DECODER else "rushlight.load_module" if kind in ENCODERS else None
        return sentence, f"{PORT_IT}, for {use}; {LIST_THEM}" if use else LIST_THEM
    by_names = f"; by its tensor names this is {found.description}" if found else ""
    if model_type is None:
        return f"model_type is missing{by_names}", found.fix if found else NAME_IT
    is_other = found is not None and found.fix not in {PORT_IT, NAME_IT}
    remedy = found.fix if found and is_other else f"{PORT_IT}, for --port"
    return f"rushlight has no architecture {model_type!r}{by_names}", f"{remedy}; {LIST_THEM}"


def model_type_of(checkpoint: Checkpoint) -> str | None:
    """model_type in the config.json of an open checkpoint; None if there is none that can be read."""
    path = checkpoint.sidecar("config.json")
    with suppress(ConfigError):
        value = read_config(path).get("model_type") if path else None
        return value if isinstance(value, str) else None
    return None


def why_not(checkpoint: Checkpoint) -> str | None:
    """Why an open checkpoint cannot run without a port, with the next step; None if its type is built in."""
    if architecture_of(checkpoint) is not None:
        return None
    path = checkpoint.sidecar("config.json")
    if path is None:
        found = family(checkpoint)
        return f"no config.json; by its tensor names this is {found.description}" if found else None
    try:
        why, remedy = refusal(read_config(path).get("model_type"), checkpoint)
        return f"{why}; {for_source(remedy, checkpoint.source)}"
    except ConfigError as error:
        return f"config.json is invalid: {error.message}"
