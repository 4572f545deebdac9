"""What values a config may have, beyond their types: choices, ranges, combinations.

>>> parse_duration("3 epochs")
Duration(amount=3.0, unit='epochs')
>>> Duration(3.0, "epochs").steps(batch=32, examples=1000)
94
"""

import dataclasses
import datetime
import math
import re
from collections.abc import Mapping
from typing import Any

from rm_jax import schemas

UNITS = ("steps", "epochs", "examples")
FOREIGN = ("hf:", "gguf:", "llama2c:")  # begin a config.model.init of other weights
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
    "model.head.init": ("zero", "normal", "keep", "reset"),
    "data.bootstrap": ("none", "poisson"),
    "data.rankings": ("whole", "pairs"),
    "data.denoise.rule": ("soft", "flip", "strength"),
    "members.share": ("none", "adapters", "trunk"),
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
    "model.lora.alpha",
    "model.vocab_multiple",
    "members.count",
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
    "data.label_noise",
    "data.denoise.share",
    "optim.final_fraction",
    "train.too_good",
)
BELOW_ONE = (
    "model.dropout",
    "model.lora.dropout",
    "optim.b1",
    "optim.b2",
    "train.ema",
)
NOT_NEGATIVE = (
    "model.features",
    "model.lora.rank",
    "data.limit",
    "members.at_once",
    "optim.weight_decay",
    "optim.clip_norm",
    "train.eval_examples",
    "train.keep_best",
    "train.spike_sigma",
)

MOST = 2**31 - 1  # of a whole number, where LARGEST says nothing else
# Far beyond what any machine does: mistyped, and nothing after this says it as well.
LARGEST = {
    "data.limit": 2**53,
    "contract.max_length": 2**24,
    "model.d_model": 2**18,
    "model.n_layers": 2**14,
    "model.features": 2**14,
    "model.d_ff": 2**22,
    "model.attention_block": 2**24,
    "model.vocab_multiple": 2**20,
    "model.lora.rank": 2**14,
    "members.count": 2**12,
    "batch.examples": 2**24,
    "batch.chunk_tokens": 2**28,
    "batch.prefetch": 2**16,
    "train.eval_examples": 2**53,
    "train.spike_window": 2**24,
}
FLOATS = 1.2e-38, 3.4e38  # what float32 holds, above 0


class ConfigError(ValueError):
    """A config that cannot be run: names the key, the value and what would do."""


@dataclasses.dataclass(frozen=True)
class Duration:
    """An amount of training, in steps, epochs or examples."""

    amount: float
    unit: str

    def steps(self, batch: int, examples: int) -> int:
        """Whole steps, rounded up, of `batch` examples from a set of `examples`.

        Raises:
          ConfigError: they are more than can be counted.
        """
        if self.unit == "steps":
            return int(self.amount)
        count = self.amount * (examples if self.unit == "epochs" else 1)
        steps = math.ceil(round(count / batch, 9))
        if steps > MOST:
            raise ConfigError(
                f"{self.amount:g} {self.unit} are {steps} steps of {batch} of "
                f"{examples} examples: want at most {MOST} steps"
            )
        return steps


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
        ok = len(parts) == 2 and 0 <= amount <= (MOST if unit == "steps" else 2**53)
        ok = ok and (unit != "steps" or amount == int(amount))
    except (IndexError, KeyError, ValueError):
        ok = False
    if not ok:
        raise ConfigError(
            f"config.{key} = {text!r:.200}: want an amount and a unit of {UNITS}, "
            f'e.g. "500 steps", at most "{MOST} steps"'
        )
    return Duration(amount, unit)


def parse_span(text: str, key: str = "train.profile") -> range:
    """Steps of "START:STOP", counted from 0, STOP not among them; none of "".

    Raises:
      ConfigError: naming `key`, when it is anything else.
    """
    if not text:
        return range(0)
    parts = re.fullmatch(r"(\d{1,12}):(\d{1,12})", text)
    if not parts or int(parts[1]) >= int(parts[2]):
        raise ConfigError(
            f"config.{key} = {text!r}: want START:STOP, two steps counted from 0, the "
            'second above the first, e.g. "20:25"'
        )
    return range(int(parts[1]), int(parts[2]))


def check(v: Mapping[str, Any]) -> None:
    """Checks the values of a config, each of the right type.

    Args:
      v: dotted key -> value, every key of configs/base.py among them.

    Raises:
      ConfigError: the first value out of range, and what would do.
    """
    if why := schemas.problem("config.json", v["schema_version"]):
        raise ConfigError(f"config: {why}")
    for key, known in CHOICES.items():
        if v[key] not in known:
            raise ConfigError(f"config.{key} = {v[key]!r}: known are {list(known)}")
    for key in DURATIONS:
        if parse_duration(v[key], key).amount == 0 and key != "optim.warmup":
            raise ConfigError(f"config.{key} = {v[key]!r}: must be above 0")
    for key in POSITIVE:
        _check_range(key, v[key], "above 0: ")
    for key in NOT_NEGATIVE:
        if v[key] != 0:
            _check_range(key, v[key], "0 or more: 0, or ")
    for key in UNIT_INTERVAL:
        if not 0 <= v[key] <= 1:
            raise ConfigError(f"config.{key} = {v[key]}: must be between 0 and 1")
    for key in BELOW_ONE:
        if not 0 <= v[key] < 1:
            raise ConfigError(f"config.{key} = {v[key]}: must be 0 or more, below 1")
    parse_span(v["train.profile"])
    _check_date("contract.date", v["contract.date"])
    for key in (k for k in v if k.endswith("_seed")):
        if not 0 <= v[key] < 2**31:
            raise ConfigError(f"config.{key} = {v[key]}: must be in [0, 2^31)")


def _check_date(key: str, value: str) -> None:
    try:  # fromisoformat also takes weeks, and dates without signs between
        ok = not value or datetime.date.fromisoformat(value).isoformat() == value
    except ValueError:
        ok = False
    if not ok:
        raise ConfigError(
            f"config.{key} = {value!r:.200}: want year, month and day, e.g. "
            '"2024-07-26", or ""'
        )


def _check_range(key: str, value: float, what: str) -> None:
    least, most = (1, MOST) if isinstance(value, int) else FLOATS
    most = LARGEST.get(key, most)
    if not least <= value <= most:
        huge = isinstance(value, int) and value > 1e300  # too long to be written
        shown = "a number of over 300 digits" if huge else value
        raise ConfigError(f"config.{key} = {shown}: must be {what}{least} to {most}")
