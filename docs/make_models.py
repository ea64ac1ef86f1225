"""Writes docs/models.md from the catalogue of built-in types and the short names."""

# ruff: noqa: E501 (lines of the page)

from pathlib import Path

from rushlight.checkpoint.short_names import short_names
from rushlight.loading.near_types import DECODER, NEAR_TYPES
from rushlight.models.catalogue import CATALOGUE, ModelType

INTRODUCTION = """\
# Models

<!-- Written by docs/make_models.py; run `just docs` to update it. -->

A checkpoint runs if the `model_type` in its `config.json` is built in. `rushlight models` prints these tables, with
`--json` for programs. [walks.md](walks.md) takes a model of four families from its name to a proven answer.

```console
$ rushlight models qwen3
...
  Qwen/Qwen3-0.6B  596M   40,960  qwen3, qwen3:0.6b
...
```

Any fine-tune of these types runs too.
"""

SHORT_NAMES = """\

## Short names

Every command and `rushlight.load` take a short name instead of a hub id, and say on stderr what it stands for:
`note: smollm2 is HuggingFaceTB/SmolLM2-135M-Instruct`. A file or folder of that name takes precedence. A family's name
alone is its smallest model that chats; an unknown name suggests similar ones.

Models marked as gated need an accepted licence: accept it on the model's page on the hub, and sign in with `hf auth login`
(or set `HF_TOKEN`). The repositories of OPT and some other old models have only PyTorch pickles, which
rushlight never opens; the error prints the line that converts them.

## Download, list and delete

`rushlight pull NAME` downloads a model into the cache of huggingface_hub, which other programs share, and prints its folder.
Only what rushlight reads is downloaded: safetensors, config and tokenizer files, and none of the `.bin`, `.gguf` and ONNX
copies. After Ctrl-C, a crash or a broken connection the same command continues the weights where they ended, and complete
files are not downloaded again; each new file is checked against its hash. For this, weights come over HTTP; files of more
than 50 GB come over Xet, which starts such a file again. Other commands download what is missing, too; with `--offline` they
use the cache only.

<!-- not run: downloads 260 MB -->
```console
$ rushlight pull smollm2
note: smollm2 is HuggingFaceTB/SmolLM2-135M-Instruct
HuggingFaceTB/SmolLM2-135M-Instruct: 256.6 MiB to download
134,515,008 parameters: weights in bf16 256.6 MiB (f32 513.1 MiB, int8 136.4 MiB, int4 79.0 MiB); keys and values 45.0 MiB for 2,048 tokens, 180.0 MiB for all 8,192 tokens
fits in bf16 (301.6 MiB of 21.0 GiB available)
/home/me/.cache/huggingface/hub/models--HuggingFaceTB--SmolLM2-135M-Instruct/snapshots/12fd25f77366fa6b3b4b768ec3050bf629380bac
$ rushlight list
model                                type       size  here
HuggingFaceTB/SmolLM2-135M-Instruct  llama  260.0 MiB  fits in bf16 (301.6 MiB of 21.0 GiB available); short name smollm2
1 model, 260.0 MiB, in /home/me/.cache/huggingface/hub
$ rushlight rm smollm2
delete HuggingFaceTB/SmolLM2-135M-Instruct, 260.0 MiB in /home/me/.cache/huggingface/hub/models--HuggingFaceTB--SmolLM2-135M-Instruct? [y/N] y
deleted HuggingFaceTB/SmolLM2-135M-Instruct: 260.0 MiB freed
```

`list` names what is broken: half downloads, missing shards, links to files that are gone, files that were cut. `rm` takes
the complete name or a short name, asks (or takes `--yes`), and deletes nothing outside the cache. `HF_HUB_CACHE`, `HF_HOME`
and `HF_HUB_OFFLINE` work as for huggingface_hub.

## Memory

A model takes its weights, in the dtype that `--dtype` selects, and the keys and values of the tokens in use: `inspect`
prints both from the headers, before anything is downloaded. With weights in f32, keys and values are f32, otherwise f16.

| parameters | bf16 | int8 | int4 |
|---|---|---|---|
| 135M | 0.3 GB | 0.15 GB | 0.08 GB |
| 1B | 2 GB | 1.1 GB | 0.6 GB |
| 3B | 6 GB | 3.2 GB | 1.8 GB |
| 7B | 14 GB | 7.5 GB | 4.1 GB |

## What is not built in

A decoder of another type can be ported: `rushlight port` writes a model file under the checkpoint's own names
([port-a-model.md](port-a-model.md)). These types are refused by name:

| | types |
|---|---|
"""


def page() -> str:
    """The document."""
    table = "\n| type | models | what is special |\n|---|---|---|\n"
    table += "".join(f"| `{each.model_type}` | {each.title} | {each.special} |\n" for each in CATALOGUE)
    return INTRODUCTION + table + _checkpoints() + SHORT_NAMES + _near_types()


def _checkpoints() -> str:
    rows = "".join(_rows(each) for each in CATALOGUE)
    return (
        "\n## Well-known checkpoints\n\n| type | hub id | parameters | context | short name |\n|---|---|---|---|---|\n"
        + rows
    )


def _rows(each: ModelType) -> str:
    return "".join(
        f"| `{each.model_type}` | [{row.repo_id}](https://huggingface.co/{row.repo_id}) | {row.size} | {row.context:,} |"
        f" {', '.join([*(f'`{name}`' for name in short_names(row.repo_id)), *(['gated'] if row.is_gated else [])])} |\n"
        for row in each.published
    )


def _near_types() -> str:
    kinds: dict[str, list[str]] = {}
    for model_type, known in NEAR_TYPES.items():
        kinds.setdefault(known.kind, []).append(f"`{model_type}`")
    return "".join(
        f"| {kind}{', to port' if kind == DECODER else ''} | {', '.join(types)} |\n" for kind, types in kinds.items()
    )


if __name__ == "__main__":
    Path(__file__).with_name("models.md").write_text(page(), encoding="utf-8")
