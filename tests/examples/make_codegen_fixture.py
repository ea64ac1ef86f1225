"""Writes tests/examples/codegen: a tiny CodeGen checkpoint, and its outputs in PyTorch and transformers.

    python tests/examples/make_codegen_fixture.py        (needs the [proof] extra)

The weights are noise of standard deviation 0.35, biases and norms too: with the small weights of an untrained model a
wrong port passes. `expected.safetensors` has prompt_ids (T,), logits_f32 and logits_f64 (T, V), and greedy_ids (60,).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import CodeGenConfig, CodeGenForCausalLM

FOLDER = Path(__file__).parent / "codegen"


def main() -> None:
    torch.manual_seed(144)  # its greedy tokens are not all the same
    config = CodeGenConfig(
        vocab_size=61,
        n_embd=48,
        n_layer=2,
        n_head=8,
        n_inner=31,
        n_positions=160,
        rotary_dim=4,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = CodeGenForCausalLM(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.35)
    shutil.rmtree(FOLDER, ignore_errors=True)
    model.save_pretrained(FOLDER)
    (FOLDER / "generation_config.json").unlink()

    prompt = torch.randint(3, config.vocab_size, (1, 24))
    with torch.no_grad():
        greedy = model.generate(prompt, max_new_tokens=60, do_sample=False, eos_token_id=None, pad_token_id=1)
        expected = {
            "prompt_ids": prompt[0],
            "greedy_ids": greedy[0, prompt.shape[1] :].contiguous(),
            "logits_f32": model(prompt).logits[0],
            "logits_f64": model.double()(prompt).logits[0],
        }
    save_file(expected, FOLDER / "expected.safetensors")
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    (FOLDER / "recorded.json").write_text(json.dumps(versions, indent=2) + "\n")


if __name__ == "__main__":
    main()
