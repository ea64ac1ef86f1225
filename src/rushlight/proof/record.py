"""Records the input and output of every submodule of a PyTorch module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np

from rushlight.errors import LibraryError, RecordError
from rushlight.files.atomic import atomic_write
from rushlight.proof.digest import values_digest
from rushlight.proof.golden import Call, Case, Golden

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray

__all__ = ["record", "required_library", "write_golden"]


def record(
    module: Any,
    inputs: Any,
    path: str | os.PathLike[str] | None = None,
    *,
    texts: Sequence[str | None] | None = None,
    greedy: int = 0,
    weights: Mapping[str, str] | None = None,
) -> Golden:
    """Run a PyTorch module, and record the input and output of every submodule.

        rushlight.record(my_model, [464, 3290], "golden.safetensors")

    The module runs in evaluation mode and without gradients, each prompt as a batch of one; its mode is restored. Of
    inputs and outputs that are tuples or dicts, the first tensor is kept, and all of an output of tensors of one shape,
    such as cosines and sines. Floats are stored as float32 without batch axis: (1, T, C) as (T, C), (1, T, H, D) as
    (T, H, D), and a convolution's (1, C, T) as (C, T); `verify` flattens and transposes as fits.

    Args:
        module: any torch.nn.Module whose forward takes token ids (1, T), or the arguments in a dict of tensors.
        inputs: a prompt as token ids or as a (1, T) or (T,) tensor, a dict of arguments in which the first tensor of
            integers is the prompt, or a list of such prompts.
        path: the golden file to write; None writes none.
        texts: the text of each prompt.
        greedy: the number of greedy tokens to record, for a module whose first output is logits (1, T, V).
        weights: the digests of the checkpoint's tensors; None takes those of the module's state dict.

    Raises:
        LibraryError: PyTorch or safetensors is not installed.
        RecordError: the inputs are invalid, or the module cannot run on them.
    """
    torch = required_library("torch")
    if not isinstance(module, torch.nn.Module):
        raise RecordError("cannot record this object", expected="a torch.nn.Module", found=type(module).__name__)
    prompts = _prompts(torch, inputs)
    prompt_texts = list(texts or [None] * len(prompts))
    if len(prompt_texts) != len(prompts):
        raise RecordError("texts and prompts differ in number", expected=len(prompts), found=len(prompt_texts))
    parameter = next(iter(module.parameters()), None)
    if parameter is not None:
        prompts = [_moved(prompt, parameter.device) for prompt in prompts]
    config: Any = getattr(module, "config", None)
    with _evaluating(torch, module):
        golden = Golden(
            made_with=_versions(),
            model=type(module).__name__,
            dtype=str(torch.float32 if parameter is None else parameter.dtype).removeprefix("torch."),
            config=_plain(_config_values(config)) if hasattr(config, "to_dict") else {},
            weights=dict(weights) if weights is not None else _state_digests(torch, module),
            cases=[
                _case(torch, module, i, prompt, text, greedy)
                for i, (prompt, text) in enumerate(zip(prompts, prompt_texts, strict=True))
            ],
        )
    if path is not None:
        write_golden(golden, path)
    return golden


def write_golden(golden: Golden, path: str | os.PathLike[str]) -> None:
    """Write a golden file atomically, replacing an existing one.

    Raises:
        LibraryError: safetensors is not installed.
        OSError: the folder does not exist or is not writable, or the disk is full; nothing is left behind.
    """
    required_library("safetensors")
    from safetensors.numpy import save

    arrays = {name: np.ascontiguousarray(array) for name, array in golden.arrays().items()}
    atomic_write(path, save(arrays, golden.metadata()))


class _Recorder:
    """Stores the inputs and outputs that the hooks of one run see."""

    def __init__(self, torch: Any, case: int) -> None:
        self._torch = torch
        self._case = case
        self._names: dict[tuple[str, str], str] = {}
        self._calls: Counter[str] = Counter()
        self._stack: list[tuple[str, str | None]] = []
        self.tensors: dict[str, NDArray[Any]] = {}
        self.calls: list[Call] = []

    def enter(self, module: Any, path: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._calls[path] += 1
        call = path if self._calls[path] == 1 else f"{path}#{self._calls[path]}"
        # Stored before the module runs, because a module may modify its input in place.
        given = self._first((*args, *kwargs.values()))
        if isinstance(module, self._torch.nn.Embedding) and "position_ids" in kwargs:
            given = self._first(kwargs["position_ids"])  # OPT's first argument is a mask
        self._stack.append((call, self._keep("input", call, given)))

    def leave(self, module: Any, output: Any) -> None:
        call, given = self._stack.pop()
        returned, *more = self._returned(call, output)
        line = type(module).__name__ if next(module.children(), None) is not None else " ".join(repr(module).split())
        eps = next((value for key in ("eps", "variance_epsilon") if (value := getattr(module, key, None))), None)
        kept = tuple(name for name in more if name is not None)
        self.calls.append(Call(call, line, float(eps) if isinstance(eps, float) else None, given, returned, kept))

    def _returned(self, call: str, output: Any) -> list[str | None]:
        """The names of the tensors of an output: the first, and the others of a tuple of tensors of one shape."""
        tensors = [self._first(output)]
        parts = output if isinstance(output, tuple) else ()
        if all(isinstance(part, self._torch.Tensor) for part in parts) and len({part.shape for part in parts}) == 1:
            tensors = list(parts)
        return [self._keep("output", f"{call}/{i}" if i else call, tensor) for i, tensor in enumerate(tensors)]

    def _first(self, value: Any) -> Any:
        """The first tensor of a tensor, a tuple, a dict or a ModelOutput; None if there is none."""
        if isinstance(value, self._torch.Tensor):
            return value
        parts: Sequence[Any] = ()
        if isinstance(value, Mapping):
            parts = list(value.values())
        elif isinstance(value, list | tuple):
            parts = value
        return next((found for part in parts if (found := self._first(part)) is not None), None)

    def _keep(self, kind: str, call: str, tensor: Any) -> str | None:
        """The name under which the tensor is stored, its own or that of an equal one; None if it is not compared."""
        if tensor is None or tensor.is_complex() or tensor.dtype == self._torch.bool:
            return None
        wanted = self._torch.float32 if tensor.is_floating_point() else self._torch.int64
        array = tensor.detach().to("cpu", wanted, copy=True).numpy()
        if array.ndim > 1 and array.shape[0] == 1:
            array = array[0]
        key = (array.dtype.str, values_digest(array))
        if key not in self._names:
            name = f"{self._case}/{kind}/{call}"
            self._names[key] = name
            self.tensors[name] = array
        return self._names[key]


def _case(torch: Any, module: Any, number: int, prompt: Mapping[str, Any] | Any, text: str | None, greedy: int) -> Case:
    recorder = _Recorder(torch, number)
    handles = []
    for path, part in module.named_modules():
        handles += [
            part.register_forward_pre_hook(
                lambda part, args, kwargs, path=path: recorder.enter(part, path, args, kwargs), with_kwargs=True
            ),
            part.register_forward_hook(lambda part, _args, output: recorder.leave(part, output)),
        ]
    try:
        _run(module, prompt)
    finally:
        for handle in handles:
            handle.remove()
    ids = _ids_of(torch, prompt)
    limit = next((n for key in ("max_position_embeddings", "n_positions") if (n := _config(module, key))), None)
    room = greedy if limit is None else max(0, min(greedy, limit - len(ids)))
    new_ids, margins = _greedy(torch, module, prompt, room) if room else ([], [])
    return Case(ids, text, recorder.calls, new_ids, margins, recorder.tensors)


def _greedy(torch: Any, module: Any, prompt: Any, n: int) -> tuple[list[int], list[float]]:
    """The greedy tokens, each computed from the full sequence without a cache, and their margins."""
    if isinstance(prompt, Mapping):
        raise RecordError("greedy tokens require a module that takes only token ids")
    ids, margins = prompt, []
    for _ in range(n):
        logits = _Recorder(torch, 0)._first(_run(module, ids))
        if logits is None or logits.ndim != 3 or logits.shape[:2] != ids.shape:
            found = None if logits is None else tuple(logits.shape)
            raise RecordError("greedy tokens require logits", expected="(1, T, V)", found=found)
        best, second = logits[0, -1].float().topk(2).values.tolist()
        margins.append(best - second)
        ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    return ids[0, prompt.shape[1] :].tolist(), margins


def _run(module: Any, prompt: Any) -> Any:
    try:
        return module(**prompt) if isinstance(prompt, Mapping) else module(prompt)
    except Exception as error:
        raise RecordError(
            f"{type(module).__name__} raises {type(error).__name__} for the inputs: {error}",
            remedy="forward is called with token ids (1, T); for other arguments, pass a dict",
        ) from error


def _prompts(torch: Any, inputs: Any) -> list[Any]:
    """The prompts, each a (1, T) tensor of ids or a dict of tensors."""
    if isinstance(inputs, Mapping | torch.Tensor) or (
        isinstance(inputs, Sequence) and inputs and all(isinstance(i, Integral) for i in inputs)
    ):
        inputs = [inputs]
    if not isinstance(inputs, Sequence) or isinstance(inputs, str | bytes) or not inputs:
        raise RecordError(
            "invalid inputs", expected="token ids, tensors of them, or dicts of tensors", found=type(inputs).__name__
        )
    return [_prompt(torch, prompt) for prompt in inputs]


def _prompt(torch: Any, prompt: Any) -> Any:
    if isinstance(prompt, Mapping):
        _ids_of(torch, prompt)
        return dict(prompt)
    if not isinstance(prompt, torch.Tensor):
        if not isinstance(prompt, Sequence) or not all(isinstance(i, Integral) for i in prompt):
            raise RecordError(
                "invalid prompt", expected="token ids, a tensor of them, or a dict", found=type(prompt).__name__
            )
        prompt = torch.tensor([int(i) for i in prompt])
    prompt = prompt[None] if prompt.ndim == 1 else prompt
    if prompt.ndim != 2 or prompt.shape[0] != 1 or not prompt.numel() or prompt.is_floating_point():
        raise RecordError("invalid prompt", expected="integers (1, T)", found=f"{prompt.dtype} {tuple(prompt.shape)}")
    return prompt


def _moved(prompt: Any, device: Any) -> Any:
    if not isinstance(prompt, Mapping):
        return prompt.to(device)
    return {name: value.to(device) if hasattr(value, "to") else value for name, value in prompt.items()}


def _ids_of(torch: Any, prompt: Any) -> list[int]:
    tensors = list(prompt.values()) if isinstance(prompt, Mapping) else [prompt]
    for tensor in tensors:
        has_integers = isinstance(tensor, torch.Tensor) and tensor.dtype in (torch.int64, torch.int32)
        if has_integers and tensor.ndim == 2 and tensor.shape[0] == 1 and tensor.numel():
            return [int(i) for i in tensor[0].tolist()]
    raise RecordError("no argument is a (1, T) tensor of token ids", found=", ".join(map(str, prompt)))


@contextmanager
def _evaluating(torch: Any, module: Any) -> Iterator[None]:
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for part in training:
            part.training = True


def _state_digests(torch: Any, module: Any) -> dict[str, str]:
    digests = {}
    for name, tensor in module.state_dict().items():
        wanted = torch.float32 if tensor.is_floating_point() else tensor.dtype
        digests[name] = values_digest(tensor.detach().to("cpu", wanted).contiguous().numpy())
    return digests


def _versions() -> dict[str, str]:
    versions = {}
    for name in ("rushlight", "torch", "transformers"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _config_values(config: Any) -> dict[str, Any]:
    """The config without the path that it was loaded from."""
    return {key: value for key, value in config.to_dict().items() if key != "_name_or_path"}


def _plain(config: Any) -> Any:
    """A config as JSON values; other values become strings."""
    if isinstance(config, Mapping):
        return {str(key): _plain(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [_plain(value) for value in config]
    return config if isinstance(config, str | int | float | bool | None) else str(config)


def _config(module: Any, key: str) -> int | None:
    value = getattr(getattr(module, "config", None), key, None)
    return value if isinstance(value, int) else None


def required_library(name: str) -> Any:
    """torch, transformers or safetensors.

    Raises:
        LibraryError: it is not installed.
    """
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise LibraryError(
            f"recording requires {name}, which cannot be imported: {error}",
            remedy="pip install 'rushlight[proof]'; recordings can be verified on any machine, without PyTorch",
        ) from None
