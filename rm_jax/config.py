"""Configs: load, override, validate, freeze. A config is data; a run's is JSON.

>>> parse_duration("3 epochs")
Duration(amount=3.0, unit='epochs')
>>> Duration(3.0, "epochs").steps(batch=32, examples=1000)
94
"""

import ast
import dataclasses
import difflib
import importlib.util
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from rm_jax import store

UNITS = ("steps", "epochs", "examples")
# Sections whose keys depend on a choice made in them; checked where they are read.
OPEN = ("data.eval", "data.columns", "data.world", "loss", "data.audit")
CHOICES = {
    "data.on_bad_row": ("raise", "drop"),
    "contract.bos": ("one", "none"),
    "contract.eos": ("template", "append"),
    "contract.truncation_side": ("left", "right"),
    "contract.over_long": ("truncate", "drop", "error"),
    "contract.pooling": ("last", "mean", "sum"),
    "model.attention": ("causal", "full"),
    "model.dtype": ("float32", "bfloat16"),
    "model.remat": ("none", "layer"),
    "model.lm_head": ("none", "tied", "untied"),
    "model.head_init": ("zero", "normal"),
    "batch.layout": ("packed", "padded"),
    "optim.name": ("adamw", "lion", "adafactor", "sgd"),
    "optim.schedule": ("cosine", "linear", "constant"),
    "train.best_mode": ("max", "min"),
    "train.on_nonfinite": ("skip", "stop"),
}
DURATIONS = (
    "optim.warmup",
    "train.duration",
    "train.log_every",
    "train.eval_every",
    "train.save_every",
)
POSITIVE = (
    "contract.max_length",
    "contract.max_response",
    "model.d_model",
    "model.n_layers",
    "model.n_heads",
    "model.n_kv_heads",
    "model.d_ff",
    "model.attention_block",
    "model.rope_base",
    "model.norm_eps",
    "model.vocab_multiple",
    "batch.examples",
    "batch.chunk_tokens",
    "batch.tokens_per_slot",
    "batch.prefetch",
    "optim.learning_rate",
    "optim.eps",
    "train.keep_last",
    "train.max_skips",
    "train.spike_window",
)
UNIT_INTERVAL = (
    "data.valid_fraction",
    "data.test_fraction",
    "model.dropout",
    "optim.final_fraction",
    "optim.b1",
    "optim.b2",
    "train.ema",
    "train.too_good",
)
NOT_NEGATIVE = (
    "data.limit",
    "optim.weight_decay",
    "optim.clip_norm",
    "train.eval_examples",
    "train.keep_best",
    "train.spike_sigma",
)


class ConfigError(ValueError):
    """A config that cannot be run: names the key, the value and what would do."""


@dataclasses.dataclass(frozen=True)
class Duration:
    """An amount of training, in steps, epochs or examples."""

    amount: float
    unit: str

    def steps(self, batch: int, examples: int) -> int:
        """Whole steps, rounded up, of `batch` examples from a set of `examples`."""
        if self.unit == "steps":
            return int(self.amount)
        count = self.amount * (examples if self.unit == "epochs" else 1)
        return math.ceil(round(count / batch, 9))


def parse_duration(text: str, key: str = "duration") -> Duration:
    """Reads "500 steps", "3 epochs" or "10000 examples".

    Raises:
      ConfigError: naming `key`, when it is anything else.
    """
    parts = text.split() if isinstance(text, str) else []
    units = {u.rstrip("s"): u for u in UNITS}
    try:
        amount = float(parts[0])
        unit = units[parts[1].rstrip("s")]
        ok = len(parts) == 2 and math.isfinite(amount) and amount >= 0
        ok = ok and (unit != "steps" or amount == int(amount))
    except (IndexError, KeyError, ValueError):
        ok = False
    if not ok:
        raise ConfigError(
            f"config.{key} = {text!r}: want an amount and a unit of {UNITS}, "
            'e.g. "500 steps"'
        )
    return Duration(amount, unit)


def locate(address: str) -> pathlib.Path:
    """The file of "path.py", "path.json", a run directory or "rm_jax:name"."""
    package, colon, name = address.partition(":")
    if package == "rm_jax" and colon:
        here = pathlib.Path(__file__).parent
        for folder in (here / "_configs", here.parent / "configs"):
            if (folder / f"{name}.py").is_file():
                return folder / f"{name}.py"
        known = sorted(p.stem for p in folder.glob("*.py") if p.stem != "__init__")
        raise ConfigError(f"no config {address!r}; known: {known}")
    path = pathlib.Path(address)
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file():
        raise ConfigError(f"no config file {address!r}")
    return path


def load(address: str) -> ConfigDict:
    """Loads a config: a Python file with `get_config`, or a run's config.json.

    Args:
      address: "path/x.py", "path/x.py:arg", "rm_jax:name", "rm_jax:name:arg", a run
        directory or its config.json. A .py file is code and is executed; JSON is data.
    """
    head, arg = address, ""
    if not pathlib.Path(address).exists():
        fixed = "rm_jax:" if address.startswith("rm_jax:") else ""
        name, _, arg = address[len(fixed) :].partition(":")
        head = fixed + name
    path = locate(head)
    if path.suffix == ".json":
        if arg:
            raise ConfigError(f"{address!r}: a JSON config takes no argument")
        return _from_json(path)
    spec = importlib.util.spec_from_file_location(f"_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"{path} has no function get_config(arg)")
    return module.get_config(arg)


def _from_json(path: pathlib.Path) -> ConfigDict:
    """The base config with a JSON file's values: types as in base (tuples, floats)."""
    try:
        values = json.loads(store.read_text(path))
    except json.JSONDecodeError as e:
        raise ConfigError(f"{path}: not JSON: {e}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: want a JSON object, got {type(values).__name__}")
    config = load("rm_jax:base")
    for key, value in flatten(values).items():
        override(config, key, value)
    return config


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mapping -> {"a.b": value}; an empty mapping stays a value."""
    out = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            out.update(flatten(value, f"{prefix}{key}."))
        else:
            out[f"{prefix}{key}"] = value
    return out


def override(config: ConfigDict, key: str, value: Any) -> None:
    """Sets a dotted key; text is read as the type the key has now.

    Raises:
      ConfigError: unknown key (with the nearest known one) or wrong type.
    """
    *parents, last = key.split(".")
    node = config
    path = ""
    for name in parents:
        path += f"{name}."
        if name not in node and _is_open(path[: -len(name) - 1].rstrip(".")):
            node[name] = ConfigDict()
        if name not in node or not isinstance(node[name], ConfigDict):
            raise _unknown(key, config)
        node = node[name]
    if last not in node:
        if not _is_open(".".join(parents)):
            raise _unknown(key, config)
        with node.unlocked():
            node[last] = _literal(value)
        return
    node[last] = _as_type(key, value, node[last])


def _is_open(path: str) -> bool:
    return any(path == o or path.startswith(f"{o}.") for o in OPEN)


def _unknown(key: str, config: ConfigDict) -> ConfigError:
    known = list(flatten(config.to_dict()))
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
    return ConfigError(f"unknown key config.{key}; did you mean {near or known[:5]}?")


def _literal(value: Any) -> Any:
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return value
    if isinstance(value, Mapping):
        return ConfigDict(dict(value))
    return tuple(_tuples(value)) if isinstance(value, list | tuple) else value


def _tuples(values: Any) -> list[Any]:
    return [tuple(_tuples(v)) if isinstance(v, list | tuple) else v for v in values]


def _as_type(key: str, value: Any, now: Any) -> Any:
    """`value` as the type of `now`: an int may stand for a float, text for anything."""
    if isinstance(now, str):
        if not isinstance(value, str):
            raise ConfigError(f"config.{key} = {value!r}: want text like {now!r}")
        return value
    new = _literal(value)
    if isinstance(now, float) and isinstance(new, int) and not isinstance(new, bool):
        new = float(new)
    same = type(new) is type(now) or (
        isinstance(now, ConfigDict) and isinstance(new, ConfigDict)
    )
    if not same:
        raise ConfigError(
            f"config.{key} = {value!r}: want {type(now).__name__} like {now!r}, "
            f"got {type(new).__name__}"
        )
    return new


def validate(config: ConfigDict) -> FrozenConfigDict:
    """Checks every value that can be checked without data or devices.

    Raises:
      ConfigError: the first key that is missing, unknown, of the wrong type or out of
        range, with its value, the limit and what would do.
    """
    base = flatten(load("rm_jax:base").to_dict())
    values = flatten(config.to_dict())
    for key in values:
        parent = key.rpartition(".")[0]
        if key not in base and not _is_open(parent) and key not in OPEN:
            raise _unknown(key, load("rm_jax:base"))
    for key, want in base.items():
        if key not in values:
            if key in OPEN or _is_open(key.rpartition(".")[0]):
                continue
            raise ConfigError(f"config.{key} is missing; its default is {want!r}")
        if not isinstance(want, dict) and key not in OPEN:
            _as_type(key, values[key], want)
    _check_values(values)
    _check_together(values)
    return FrozenConfigDict(config)


def _check_values(v: Mapping[str, Any]) -> None:
    for key, known in CHOICES.items():
        if v[key] not in known:
            raise ConfigError(f"config.{key} = {v[key]!r}: known are {list(known)}")
    for key in DURATIONS:
        parse_duration(v[key], key)
    for key in POSITIVE:
        if not v[key] > 0 or not math.isfinite(v[key]):
            raise ConfigError(f"config.{key} = {v[key]}: must be above 0")
    for key in NOT_NEGATIVE:
        if not v[key] >= 0 or not math.isfinite(v[key]):
            raise ConfigError(f"config.{key} = {v[key]}: must be 0 or more")
    for key in UNIT_INTERVAL:
        if not 0 <= v[key] <= 1:
            raise ConfigError(f"config.{key} = {v[key]}: must be between 0 and 1")
    for key in (k for k in v if k.endswith("_seed")):
        if not 0 <= v[key] < 2**31:
            raise ConfigError(f"config.{key} = {v[key]}: must be in [0, 2^31)")


def _check_together(v: Mapping[str, Any]) -> None:
    lengths = v["batch.row_lengths"]
    if not lengths or list(lengths) != sorted(set(lengths)) or lengths[0] < 1:
        raise ConfigError(f"config.batch.row_lengths = {lengths}: want them rising")
    if v["contract.max_length"] > lengths[-1]:
        raise ConfigError(
            f"config.contract.max_length = {v['contract.max_length']} does not fit the "
            f"longest row, config.batch.row_lengths[-1] = {lengths[-1]}: raise the row "
            "length or lower max_length"
        )
    for n in lengths:
        if v["batch.chunk_tokens"] % n:
            raise ConfigError(
                f"config.batch.chunk_tokens = {v['batch.chunk_tokens']} is not a multiple "
                f"of the row length {n}"
            )
    if v["model.attention"] == "full" and v["batch.layout"] != "padded":
        raise ConfigError(
            "config.model.attention = 'full' reads a whole row at once, so responses "
            "cannot share a prompt: set config.batch.layout = 'padded'"
        )
    if v["contract.max_response"] > v["contract.max_length"]:
        raise ConfigError(
            f"config.contract.max_response = {v['contract.max_response']} is above "
            f"config.contract.max_length = {v['contract.max_length']}"
        )
    if v["data.valid_fraction"] + v["data.test_fraction"] >= 1:
        raise ConfigError("config.data.valid_fraction + test_fraction must be below 1")
    for a, b in (
        ("model.n_heads", "model.n_kv_heads"),
        ("model.d_model", "model.n_heads"),
    ):
        if v[a] % v[b]:
            raise ConfigError(f"config.{a} = {v[a]} is not a multiple of {b} = {v[b]}")
