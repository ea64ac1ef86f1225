"""Strict reading of config.json: checks the type and range of every field, and reports all problems at once."""

from __future__ import annotations

import logging
import math
import re
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from rushlight.errors import ConfigError, printable_name

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

MAX_SIZE = 2**24
"""The largest number of rows, channels or positions in a config."""
MAX_LAYERS = 2**10
_REQUIRED: Any = object()

BENIGN_KEYS = frozenset(
    # Training, bookkeeping, other heads, settings of transformers: none changes the logits of a language model.
    """_attn_implementation_autoset _attn_implementation_internal _commit_hash _model_name_or_path _name_or_path
    _num_labels activation_dropout architectures attention_dropout attention_probs_dropout_prob
    attention_softmax_in_fp32 attn_pdrop auto_map chunk_size_feed_forward classifier_dropout decoder_start_token_id
    dropout dtype embd_dropout embd_pdrop embed_dropout embedding_dropout finetuning_task gradient_checkpointing
    hidden_dropout hidden_dropout_prob id2label init_std initializer_range is_decoder is_encoder_decoder label2id
    language layerdrop model_type num_labels output_attentions output_hidden_states output_past pad_token_id
    predict_special_tokens prefix pretraining_tp problem_type resid_dropout resid_pdrop residual_dropout return_dict
    scale_attention_softmax_in_fp32 sep_token_id summary_activation summary_first_dropout summary_hidden_size
    summary_proj_to_labels summary_type summary_use_proj task_specific_params tf_legacy_loss tokenizer_class
    torch_dtype torchscript transformers.js_config transformers_version unk_token_id use_cache
    use_flash_attention_2""".split()
)

_ARITHMETIC = re.compile("scal|multipl|softcap|norm|rope|window|attention_|residual|bias|clip|alibi|rotary")
"""Unknown keys that match may change the arithmetic; ignoring them could yield fluent nonsense."""
_FACTOR = re.compile("scal|multipl")


class Fields:
    """The fields of a config.json. Readers return valid values and collect problems, which `finish` raises.

    A key that is missing or null has its default; a key without a default is required.
    """

    def __init__(self, values: Mapping[str, Any], file: str | None) -> None:
        self._values = values
        self._file = file
        self._path = ""
        self._read: set[str] = set()
        self._problems: list[str] = []
        self._notes: list[str] = []

    def child(self, key: str, *, used: bool = True) -> Fields:
        """The fields of an object in the config, whose problems are reported with the others.

        Without fields if the key is missing or null, or if the object is not `used` here.
        """
        value = self._get(key, {})
        if not isinstance(value, dict):
            self._refuse(key, value, {}, "an object", {})
        child = Fields(value if used and isinstance(value, dict) else {}, self._file)
        child._path = f"{self._path}{key}."
        child._problems, child._notes = self._problems, self._notes
        return child

    def has(self, key: str) -> bool:
        """Whether a key has a value other than null."""
        return self._values.get(key) is not None

    @property
    def is_valid(self) -> bool:
        """Whether there are no problems so far; only then can values be compared with one another."""
        return not self._problems

    def size(self, key: str, default: Any = _REQUIRED, *, at_most: int = MAX_SIZE) -> int:
        """A positive integer."""
        value = self._get(key, default)
        if type(value) is int and 1 <= value <= at_most:
            return value
        return int(self._refuse(key, value, default, f"an integer from 1 to {at_most}", at_most))

    def count(self, key: str, default: int) -> int:
        """An integer of 0 or more."""
        value = self._get(key, default)
        if type(value) is int and 0 <= value <= MAX_SIZE:
            return value
        return int(self._refuse(key, value, default, f"an integer from 0 to {MAX_SIZE}", default))

    def positive(self, key: str, default: Any = _REQUIRED) -> float:
        """A number above 0 that float32 can hold."""
        value = self._get(key, default)
        if _is_positive(value):
            return float(value)
        return float(self._refuse(key, value, default, "a number from 1e-30 to 1e30", 1.0))

    def positives(self, key: str, n: int) -> tuple[float, ...]:
        """A list of n numbers above 0 that float32 can hold."""
        value = self._get(key, _REQUIRED)
        if isinstance(value, list) and len(value) == n and all(_is_positive(each) for each in value):
            return tuple(map(float, value))
        if isinstance(value, list) and len(value) != n:
            self.problem(f"{key} is a list of {len(value)}, expected a list of {n} numbers")
        else:
            self._refuse(key, value, _REQUIRED, f"a list of {n} numbers from 1e-30 to 1e30", ())
        return (1.0,) * n

    def number(self, key: str, default: float) -> float:
        """A number of any sign that float32 can hold."""
        value = self._get(key, default)
        if type(value) in (int, float) and -1e30 <= value <= 1e30:
            return float(value)
        return float(self._refuse(key, value, default, "a number from -1e30 to 1e30", default))

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._get(key, default)
        if type(value) is bool:
            return value
        return bool(self._refuse(key, value, default, "true or false", default))

    def flags(self, key: str, n: int) -> tuple[bool, ...]:
        """A list of n flags, true and false or 1 and 0; empty if the key is missing."""
        value = self._get(key, [])
        if value == [] or (isinstance(value, list) and len(value) == n and all(v in (0, 1) for v in value)):
            return tuple(map(bool, value))
        self._refuse(key, value, [], f"a list of {n} numbers, each 0 or 1", [])
        return ()

    def choice(self, key: str, choices: Collection[str], default: str) -> str:
        """One of several words."""
        value = self._get(key, default)
        if type(value) is str and value in choices:
            return value
        return str(self._refuse(key, value, default, f"one of {', '.join(sorted(choices))}", default))

    def window(self, key: str, default: int | None) -> int | None:
        """The number of positions that a layer sees; None, and 0 in some configs, is all of them."""
        if self.is_null(key) or self._get(key, default) in (None, 0):
            return None
        return self.size(key, _REQUIRED if default is None else default)

    def words(self, key: str, n: int, choices: Collection[str]) -> tuple[str, ...]:
        """A list of n words, each one of several; empty if the key is missing."""
        value = self._get(key, [])
        if value == [] or (isinstance(value, list) and len(value) == n and all(word in choices for word in value)):
            return tuple(value)
        self._refuse(key, value, [], f"a list of {n} words, each one of {', '.join(sorted(choices))}", [])
        return ()

    def token_ids(self, key: str, vocab_size: int) -> tuple[int, ...]:
        """A token id, several, or none. Ids beyond the vocabulary and -1 are dropped, which `finish` logs.

        They are common and harmless: transformers writes GPT-2's 50256 for smaller vocabularies too, and -1 means "no
        token", as in pad_token_id.
        """
        value = self._get(key, ())
        ids = tuple(value) if isinstance(value, list | tuple) else (value,)
        if not all(type(i) is int and i >= -1 for i in ids):
            self._refuse(key, value, (), "a token id, or a list of them", ())
            return ()
        if beyond := [i for i in ids if i >= vocab_size]:
            self._notes.append(f"{key} {_short(beyond)} is beyond the vocabulary of {vocab_size}: left out")
        if -1 in ids:
            self._notes.append(f"{key} -1 means no token: left out")
        return tuple(i for i in ids if 0 <= i < vocab_size)

    def token_sequences(self, key: str) -> tuple[tuple[int, ...], ...]:
        """Sequences of one token id or more; none if the key is absent."""
        value = self._get(key, [])
        is_list = isinstance(value, list) and all(isinstance(ids, list) and ids for ids in value)
        if not is_list or not all(type(i) is int and i >= 0 for ids in value for i in ids):
            self._refuse(key, value, [], "a list of lists of token ids", [])
            return ()
        return tuple(tuple(ids) for ids in value)

    def raw(self, key: str, default: Any = None) -> Any:
        """An unchecked value, such as an object, for a reader that checks it itself."""
        return self._get(key, default)

    def alias(self, key: str, of: str, value: int) -> None:
        """Another key of a field that was read as `value`: its value, if any, must be equal."""
        if self.is_valid and self.size(key, value) != value:
            self.problem(f"{key} is {_short(self._values[key])} and {of} is {value}, expected equal values")

    def is_null(self, key: str) -> bool:
        """Whether a key is there with the value null, which some architectures distinguish from a missing key."""
        self._read.add(key)
        return key in self._values and self._values[key] is None

    def neutral(self, key: str, *neutral: Any) -> None:
        """A key that is not honoured and would change the arithmetic: only `neutral` values, and null, are accepted."""
        value = self._get(key, None)
        if value is not None and not any(type(value) is type(n) and value == n for n in neutral):
            self._problems.append(f"{self._path}{key} is {_short(value)}, which rushlight does not support")

    def refuse_unread(self, known: Collection[str] = ()) -> None:
        """Adds a problem for every key that was not read and is not `known`; for objects, all keys of which matter."""
        self._problems += [
            f"{self._path}{printable_name(key)} is {_short(value)}: an unknown key; remove it if it changes nothing"
            for key, value in self._values.items()
            if key not in self._read and key not in known and value is not None
        ]

    def problem(self, text: str) -> None:
        """Adds a problem, such as two values that contradict each other; the text begins with a key."""
        self._problems.append(f"{self._path}{text}")

    def finish(self, benign: Collection[str]) -> None:
        """Raises all problems at once; otherwise logs notes, such as unknown keys.

        An unknown key whose name looks like arithmetic is a problem, unless its value changes nothing.

        Args:
            benign: keys that are known not to change the arithmetic.

        Raises:
            ConfigError: there are problems; the message lists them.
        """
        unknown = [key for key in self._values if key not in self._read and key not in benign]
        self._problems += [
            f"{printable_name(key)} is {_short(self._values[key])}: an unknown key that may change the arithmetic; "
            "remove it if it does not"
            for key in unknown
            if may_change_arithmetic(key, self._values[key])
        ]
        if problems := list(dict.fromkeys(self._problems)):  # several fields may read the same key
            n = len(problems)
            lines = "\n  ".join(problems)
            raise ConfigError(f"{n} problem{'s' if n > 1 else ''} in the config\n  {lines}", file=self._file)
        if unknown:
            names = ", ".join(sorted(map(printable_name, unknown)))
            self._notes.append(f"ignored unknown keys: {names}")
        for note in self._notes:
            logging.getLogger("rushlight").warning("%s: %s", PurePath(self._file or "config.json").name, note)

    def _get(self, key: str, default: Any) -> Any:
        self._read.add(key)
        value = self._values.get(key)
        return default if value is None else value

    def _refuse(self, key: str, value: Any, default: Any, expected: str, instead: Any) -> Any:
        if value is _REQUIRED:
            self._problems.append(f"{self._path}{key} is missing, expected {expected}")
        else:
            self._problems.append(f"{self._path}{key} is {_short(value)}, expected {expected}")
        return instead if default is _REQUIRED else default


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 1e-30 <= value <= 1e30


def may_change_arithmetic(key: str, value: Any) -> bool:
    """Whether a key that is not read may change what the model computes."""
    if not _ARITHMETIC.search(key) or value is None or value is False or value in ([], {}):
        return False
    if "bias" in key and value is True:
        return False  # the tensors show it: binding reports missing and unexpected biases
    return not (_FACTOR.search(key) and value == 1 and value is not True)


def _short(value: Any) -> str:
    """A value for a message: in JSON syntax, shortened if it is long."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    words = {True: "true", False: "false"}
    text = words[value] if isinstance(value, bool) else printable_name(repr(value)[:80])
    return text if len(text) < 60 else f"{text[:50]}…"
