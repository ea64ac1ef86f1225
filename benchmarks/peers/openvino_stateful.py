"""OpenVINO: models traced from PyTorch, with keys and values as the model's own state, as optimum-intel exports them.

int8 and int4 are NNCF's weight compression as optimum-intel makes it: int8 with a scale and a zero point a row; int4
symmetric in groups of 32, the embedding table and the head in int8.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from benchmarks.peers import PROMPT, copy_tokenizer, load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

DISTRIBUTION = "openvino"
NEEDS: tuple[str, ...] = ("tokenizers",)
FORMATS = {"f32": "f32", "bf16": "bf16", "int8": "int8", "int8-bf16": "int8", "int4": "int4", "int4-bf16": "int4"}
"""Weights, with what they are computed in unless it is f32; bf16 is OpenVINO's choice where the processor has it."""


def prepare(checkpoint: Path, form: str, folder: Path) -> Path:
    """Writes OpenVINO's intermediate representation; bf16 is set when it is loaded."""
    import openvino

    kind = form.removesuffix("-bf16") if form != "bf16" else "f32"
    if form.endswith("bf16") and "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise RuntimeError("this processor has no arithmetic in bf16, and OpenVINO would compute in f32")
    path = folder / f"openvino-{kind}"
    if not path.exists():
        model = _converted(checkpoint)
        if kind == "int8":
            import nncf

            model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
        elif kind == "int4":
            import nncf

            model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT4_SYM, group_size=32, ratio=1.0)
        partial = path.with_suffix(".partial")
        partial.mkdir(exist_ok=True)
        copy_tokenizer(checkpoint, partial)
        openvino.save_model(model, partial / "model.xml", compress_to_fp16=False)
        partial.rename(path)
    return path


def _converted(checkpoint: Path) -> Any:
    """The graph: (S, T) ids at the positions after those in the state -> logits of the requested columns."""
    import openvino
    import torch
    from openvino._offline_transformations import apply_make_stateful_transformation
    from safetensors.torch import load_file

    from benchmarks.peers.openvino_models import MODULES

    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] not in MODULES:
        raise RuntimeError(f"no conversion of a {config['model_type']} for OpenVINO here; known: {', '.join(MODULES)}")
    module = MODULES[config["model_type"]](config, load_file(checkpoint / "model.safetensors")).eval()
    n_layer, n_head, head_dim = module.n_layer, module.n_kv_head, module.head_dim
    past = [torch.zeros(2, n_head, 3, head_dim) for _ in range(2 * n_layer)]
    example = (
        torch.ones(2, 4, dtype=torch.int64),
        3 + torch.arange(4).expand(2, 4),
        torch.tensor([3]),
        torch.arange(2),
        *past,
    )
    model = openvino.convert_model(module, example_input=example)
    names = [f"past.{i}" for i in range(2 * n_layer)]
    for port, name in zip(model.inputs, ["input_ids", "position_ids", "columns", "beam_idx", *names], strict=True):
        port.get_tensor().set_names({name})
    for port, name in zip(model.outputs, ["logits", *(f"present.{name}" for name in names)], strict=True):
        port.get_tensor().set_names({name})
    for name in names:
        shape = model.input(name).partial_shape
        shape[0], shape[1], shape[2], shape[3] = -1, n_head, -1, head_dim
        model.input(name).get_node().set_partial_shape(shape)
    for name in ("input_ids", "position_ids"):
        model.input(name).get_node().set_partial_shape(openvino.PartialShape([-1, -1]))
    for name in ("columns", "beam_idx"):
        model.input(name).get_node().set_partial_shape(openvino.PartialShape([-1]))
    model.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(model, {name: f"present.{name}" for name in names})
    _start_empty(model)
    return model


def _start_empty(model: Any) -> None:
    """Makes a reset state (S, n_head, 0, head_dim), with the batch size S of the ids."""
    import numpy as np
    from openvino import opset13 as ops

    ids = model.input("input_ids")
    n_sequences = ops.gather(ops.shape_of(ids, output_type="i64"), ops.constant([0]), ops.constant(0))
    for op in model.get_ops():
        if op.get_type_name() == "ReadValue":
            _, n_head, _, head_dim = op.get_output_partial_shape(0)
            rest = ops.constant(np.array([n_head.get_length(), 0, head_dim.get_length()], np.int64))
            empty = ops.broadcast(ops.constant(0.0, dtype=np.float32), ops.concat([n_sequences, rest], axis=0))
            op.set_arguments([empty])
    model.validate_nodes_and_infer_types()


class Runtime:
    """An inference request whose state is reset before each prompt."""

    def __init__(self, path: str, form: str, threads: int) -> None:
        import openvino

        # Without the hint, OpenVINO computes f32 models in bf16 where the processor has instructions for it.
        precision = "bf16" if form.endswith("bf16") else "f32"
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": precision,
            "KV_CACHE_PRECISION": precision,
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._model = openvino.Core().compile_model(Path(path) / "model.xml", "CPU", settings)
        self._request = self._model.create_infer_request()

    def computes(self) -> str:
        kinds: Counter[str] = Counter()
        for op in self._model.get_runtime_model().get_ops():
            about = op.get_rt_info()
            if about["layerType"].astype(str) == "FullyConnected":
                kinds[f"{about['runtimePrecision'].astype(str)}, {about['primitiveType'].astype(str)}"] += 1
        return "; ".join(kind for kind, _ in kinds.most_common(2)).replace("_", " ")

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        return self._step([ids], 0, range(len(ids)))[0].copy()

    def prefill(self, ids: Sequence[int]) -> None:
        self._step([ids], 0, [len(ids) - 1]).argmax()

    def decode(self, prompts: Sequence[Sequence[int]], n_tokens: int) -> tuple[float, list[list[int]]]:
        length = len(prompts[0])
        chosen = [self._step(prompts, 0, [length - 1]).argmax(-1)]
        start = perf_counter()
        for i in range(n_tokens):
            chosen.append(self._step(chosen[-1], length + i, [0]).argmax(-1))
        seconds = perf_counter() - start
        return seconds, [[int(tokens[s, 0]) for tokens in chosen] for s in range(len(prompts))]

    def _step(self, ids: Any, position: int, columns: Sequence[int]) -> NDArray[np.float32]:
        """(S, T) ids from `position` on -> (S, len(columns), V) logits, valid until the next step."""
        import numpy as np

        if position == 0:
            self._request.reset_state()
        ids = np.asarray(ids, np.int64)
        positions = np.broadcast_to(np.arange(position, position + ids.shape[1]), ids.shape)
        inputs = {
            "input_ids": ids,
            "position_ids": positions.copy(),
            "columns": np.asarray(columns, np.int64),
            "beam_idx": np.arange(len(ids)),
        }
        return self._request.infer(inputs, share_inputs=True, share_outputs=True)["logits"]


def first_token(path: str, form: str, threads: int) -> None:
    """Loads a tokenizer with the tokenizers library, and runs a prompt."""
    tokenizer = load_tokenizer(Path(path))
    ids = tokenizer.encode(PROMPT).ids
    logits = Runtime(path, form, threads)._step([ids], 0, [len(ids) - 1])
    sys.stdout.write(tokenizer.decode([int(logits.argmax())]) + "\n")
    sys.stdout.flush()
