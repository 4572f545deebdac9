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
from collections.abc import Mapping, Sequence
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
    _check_values(v)
    _check_together(v)


def _check_values(v: Mapping[str, Any]) -> None:
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


def _check_together(v: Mapping[str, Any]) -> None:
    _check_lengths(v)
    _check_evals(v)
    _check_members(v)
    _check_features(v)
    if v["data.denoise.scores"] and v["data.rankings"] == "pairs":
        raise ConfigError(
            "config.data.denoise.scores are of whole examples, and "
            "config.data.rankings = 'pairs' makes others of them: set one of the two "
            "back"
        )
    if v["data.denoise.scores"] and v["data.label_noise"]:
        raise ConfigError(
            f"config.data.label_noise = {v['data.label_noise']} would turn labels "
            "round that config.data.denoise.scores has corrected: set it to 0, and let "
            "the noise be in the data"
        )
    if v["model.attention"] == "full" and v["batch.layout"] != "padded":
        raise ConfigError(
            "config.model.attention = 'full' reads a whole row at once, so responses "
            "cannot share a prompt: set config.batch.layout = 'padded'"
        )
    windows = v["model.windows"]
    if not windows or not all(type(w) is int and 0 <= w <= MOST for w in windows):
        raise ConfigError(
            f"config.model.windows = {windows}: want at least one number of tokens, 0 "
            f"(unlimited) to {MOST}"
        )
    if v["data.valid_fraction"] + v["data.test_fraction"] >= 1:
        raise ConfigError("config.data.valid_fraction + test_fraction must be below 1")
    for a, b in (
        ("model.n_heads", "model.n_kv_heads"),
        ("model.d_model", "model.n_heads"),
    ):
        if v[a] % v[b]:
            raise ConfigError(f"config.{a} = {v[a]} is not a multiple of {b} = {v[b]}")


def _check_lengths(v: Mapping[str, Any]) -> None:
    lengths = v["batch.row_lengths"]
    whole = lengths and all(type(n) is int and n > 0 for n in lengths)
    if not whole or list(lengths) != sorted(set(lengths)):
        raise ConfigError(
            f"config.batch.row_lengths = {lengths}: want numbers of tokens, rising"
        )
    if v["contract.max_length"] > lengths[-1]:
        raise ConfigError(
            f"config.contract.max_length = {v['contract.max_length']} does not fit the "
            f"longest row, config.batch.row_lengths[-1] = {lengths[-1]}: raise the row "
            "length or lower max_length"
        )
    for n in lengths:
        if v["batch.chunk_tokens"] % n:
            raise ConfigError(
                f"config.batch.chunk_tokens = {v['batch.chunk_tokens']} is not a "
                f"multiple of the row length {n}"
            )
    if v["contract.max_response"] >= v["contract.max_length"]:
        raise ConfigError(
            f"config.contract.max_response = {v['contract.max_response']} must be "
            f"below config.contract.max_length = {v['contract.max_length']}, so that a "
            "token of the prompt fits"
        )


def _check_members(v: Mapping[str, Any]) -> None:
    count, at_once = v["members.count"], v["members.at_once"] or v["members.count"]
    if count % at_once:
        raise ConfigError(
            f"config.members.at_once = {at_once} does not divide "
            f"config.members.count = {count}"
        )
    if at_once % max(v["mesh.member"], 1):
        raise ConfigError(
            f"config.mesh.member = {v['mesh.member']} does not divide the {at_once} "
            "members that are computed at once: change one of the two"
        )
    if v["members.share"] == "trunk" and v["members.own_order"]:
        raise ConfigError(
            "config.members.own_order: members of one trunk see the same examples: set "
            "it to False, or config.data.bootstrap = 'poisson' for weights of their own"
        )
    init = v["model.init"]
    runs = [init] if isinstance(init, str) else init
    if not isinstance(runs, list | tuple) or not all(
        isinstance(run, str) and run for run in runs
    ):
        raise ConfigError(
            f"config.model.init = {init!r}: want 'scratch', a run directory, or a list"
        )
    _check_adapters(v)
    if len(runs) < 1 or len(runs) > 1 and (len(runs) > count or "scratch" in runs):
        raise ConfigError(
            f"config.model.init names {len(runs)} runs for config.members.count = "
            f"{count} members: want at least one, at most one a member"
        )
    if len(runs) > 1 and v["members.share"] != "none":
        raise ConfigError(
            f"config.model.init names {len(runs)} runs, and members that share one "
            f"trunk (config.members.share = {v['members.share']!r}) start from one: "
            "name one run, or set share = 'none'"
        )
    _check_differ(v)


def _check_features(v: Mapping[str, Any]) -> None:
    """Refuses what heads on features of a frozen trunk cannot have."""
    if not v["model.features"]:
        return
    init = v["model.init"]
    foreign = isinstance(init, str) and init.startswith(FOREIGN)
    for ok, why in (
        (v["model.arch"] == "init", "config.model.arch = 'init', the trunk of others"),
        (foreign, f"weights of others in config.model.init (one of {FOREIGN}...)"),
        (not v["model.lora.rank"], "config.model.lora.rank = 0: nothing is adapted"),
        (not v["model.dropout"], "config.model.dropout = 0: it is run once"),
        (v["model.lm_head"] == "none", "config.model.lm_head = 'none': no log p"),
        (
            v["members.share"] == "none",
            "config.members.share = 'none': all have the one trunk",
        ),
    ):
        if not ok:
            raise ConfigError(
                f"config.model.features = {v['model.features']} trains a head on a "
                f"frozen trunk, which wants {why}; or set features to 0"
            )


def _check_differ(v: Mapping[str, Any]) -> None:
    """Refuses members of which nothing would make one another than the others."""
    of_data = v["data.bootstrap"] != "none" or v["members.own_order"]
    drawn = v["model.head.init"] in ("normal", "reset")
    if v["members.count"] == 1 or of_data or drawn or v["members.share"] == "adapters":
        return
    if v["members.share"] == "trunk":
        # Other heads have parts that are drawn whatever head.init says.
        alike = v["model.head.name"] in (
            "linear",
            "attributes",
            "quantiles",
            "gaussian",
        )
    else:
        one_run = isinstance(v["model.init"], str) or len(v["model.init"]) == 1
        alike = v["model.init"] != "scratch" and one_run
        alike = alike and not v["model.dropout"] and not v["model.lora.rank"]
    if alike:
        raise ConfigError(
            f"config.members.count = {v['members.count']}: all members would be the "
            "same model: set config.model.head.init = 'normal', or "
            "config.data.bootstrap = 'poisson'"
        )


def _matches(pattern: Any, names: Sequence[str]) -> bool:
    try:
        return any(re.fullmatch(pattern, name) for name in names)
    except (re.error, TypeError):
        return False


def _check_adapters(v: Mapping[str, Any]) -> None:
    targets = v["model.lora.targets"]
    known = ("q", "k", "v", "o", "gate", "up", "down")
    if not targets or any(not _matches(t, known) for t in targets):
        raise ConfigError(
            f"config.model.lora.targets = {targets!r}: want regexes of the whole names "
            f"of some of {known}"
        )
    if v["members.share"] == "adapters" and not v["model.lora.rank"]:
        raise ConfigError(
            "config.members.share = 'adapters': the model has none: set "
            "config.model.lora.rank"
        )
    if v["model.lora.rank"] and v["members.share"] == "trunk":
        raise ConfigError(
            "config.members.share = 'trunk' trains one trunk, and config.model.lora "
            "freezes it: set rank = 0, or share = 'adapters'"
        )
    init = v["model.head.init"]
    if v["model.init"] == "scratch" and init in ("keep", "reset"):
        raise ConfigError(
            f"config.model.head.init = {init!r}: a model from scratch has no head yet: "
            "choose 'zero' or 'normal'"
        )


def _check_evals(v: Mapping[str, Any]) -> None:
    part = "data.eval."
    evals = {k.removeprefix(part): s for k, s in v.items() if k.startswith(part)}
    for name, spec in evals.items():
        if not re.fullmatch(r"\w[\w-]*", name):  # with a dot: a mapping, not a SPEC
            raise ConfigError(
                f"config.data.eval has a set called {name!r}: it names files, so use "
                "letters, digits, _ and - only"
            )
        if not isinstance(spec, str) or spec in ("", "#"):
            raise ConfigError(
                f"config.data.eval.{name} = {spec!r:.80}: want a SPEC, or the #split "
                "of the training source"
            )
    part, _, rest = v["train.best_metric"].partition("/")
    name, _, figure = rest.partition("/")
    if v["train.keep_best"] and (part != "eval" or name not in evals or not figure):
        raise ConfigError(
            f"config.train.best_metric = {v['train.best_metric']!r}: want "
            f"eval/SET/FIGURE, with SET one of {sorted(evals)} and FIGURE e.g. nll; or "
            "set config.train.keep_best = 0"
        )
