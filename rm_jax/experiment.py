"""An experiment: a question, the units that answer it, and the rules of its verdict.

A file of experiments/ has these names, and `load` gives them checked:

    QUESTION = "Does a margin make a better reward model?"
    SEEDS = ("init_seed", "data_seed")  # repetitions; other keys are the condition
    EXPECTED = {"gain": {"value": 0.012, "source": "a paper, table 2"}}
    RULES = (Rule("gain", "margins help", "a paper, section 3", decide),)

    def get_config(arg=""): ...  # the base of all units
    def sweep(): ...  # changes of each unit, see rm_jax.hyper
    def null(): ...  # units of the world in which the claims are false; may be []

`after(changes, path)` in a value is what another unit leaves, see `needs.after`.
"""

import hashlib
import pathlib
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from ml_collections import ConfigDict

from rm_jax import config as config_module
from rm_jax import store
from rm_jax.config import ConfigError
from rm_jax.hyper import Unit
from rm_jax.needs import after as after
from rm_jax.needs import replaced

WANTED = ("QUESTION", "SEEDS", "EXPECTED", "RULES", "get_config", "sweep", "null")


class Verdict(NamedTuple):
    """What a rule makes of the figures.

    Attributes:
      holds: whether the claim does; None is undecided.
      estimate, low, high: of the effect, with its interval; NaN where there is none.
      text: what a reader has to know beside them.
    """

    holds: bool | None
    estimate: float
    low: float
    high: float
    text: str


class Interval(Protocol):
    """An effect and its 95 % interval, as `rm_jax.report.compare.Difference`."""

    mean: float
    low: float
    high: float


def above(found: Interval, limit: float = 0.0, text: str = "") -> Verdict:
    """A claim that the effect is above a limit: by its whole interval, or undecided."""
    holds = True if found.low > limit else False if found.high <= limit else None
    text = f"{text}: {found}" if text else str(found)
    return Verdict(holds, found.mean, found.low, found.high, text)


def below(found: Interval, limit: float = 0.0, text: str = "") -> Verdict:
    """A claim that the effect is below a limit: by its whole interval, or undecided."""
    holds = True if found.high < limit else False if found.low >= limit else None
    text = f"{text}: {found}" if text else str(found)
    return Verdict(holds, found.mean, found.low, found.high, text)


class Rule(NamedTuple):
    """How figures become a verdict on a claim.

    Attributes:
      name: unique in its experiment; EXPECTED has the paper's number by it.
      claim: in a sentence.
      source: where it was claimed.
      decide: of a DataFrame with one row a finished unit of one world: "unit", "null",
        every changed key by its dotted name, every figure as "SET/metric".
    """

    name: str
    claim: str
    source: str
    decide: Callable[[Any], Verdict]


class Experiment(NamedTuple):
    """A checked experiment.

    Attributes:
      address: as it was asked for.
      sha256: of the file.
      question: in a line.
      base: the config that units change.
      units, null: changes of each, {dotted key: value}.
      seeds: keys that are repetitions.
      expected: the numbers of the paper.
      rules: of the verdicts.
    """

    address: str
    sha256: str
    question: str
    base: ConfigDict
    units: tuple[Unit, ...]
    null: tuple[Unit, ...]
    seeds: tuple[str, ...]
    expected: Mapping[str, Any]
    rules: tuple[Rule, ...]


def load(address: str) -> Experiment:
    """Runs the file of an experiment and checks every part of it.

    Args:
      address: "path/x.py", "path/x.py:arg", "rm_jax:name" or "rm_jax:name:arg"; arg is
        that of get_config.

    Raises:
      ConfigError: naming the file and the part.
    """
    path, arg = locate(address)
    module = config_module.module_of(path)
    for name in WANTED:
        if not hasattr(module, name):
            raise ConfigError(
                f"{path} has no {name}: an experiment has {', '.join(WANTED)}"
            )
    found = Experiment(
        address=address,
        sha256=hashlib.sha256(store.read_bytes(path)).hexdigest(),
        question=_question(module, path),
        base=_base(module, path, arg),
        units=_units(module.sweep, "sweep", path),
        null=_units(module.null, "null", path),
        seeds=_seeds(module, path),
        expected=_expected(module, path),
        rules=_rules(module, path),
    )
    _check_together(found, path)
    return found


def locate(address: str) -> tuple[str, str]:
    """The file and the argument of an address.

    Raises:
      ConfigError: there is none; lists the known names of rm_jax.
    """
    fixed = "rm_jax:" if address.startswith("rm_jax:") else ""
    name, _, arg = address[len(fixed) :].partition(":")
    if not fixed:
        if not name.endswith(".py") or not store.exists(name):
            raise ConfigError(
                f"no experiment {address!r}: give FILE.py[:ARG] or rm_jax:NAME[:ARG]"
            )
        return name, arg
    here = pathlib.Path(__file__).parent
    folders = here / "_experiments", here.parent / "experiments"  # installed, the tree
    files = {p.stem: p for folder in folders for p in folder.glob("*.py")}
    known = sorted(n for n, p in files.items() if "QUESTION" in p.read_text("utf-8"))
    if name not in known:
        raise ConfigError(f"no experiment {address!r}; known: {known}")
    return str(files[name]), arg


def _question(module: types.ModuleType, path: str) -> str:
    text = module.QUESTION
    if not isinstance(text, str) or not text or "\n" in text:
        raise ConfigError(f"{path}: QUESTION = {text!r:.200}: want a line of text")
    return text


def _base(module: types.ModuleType, path: str, arg: str) -> ConfigDict:
    with config_module.named(path):
        base = module.get_config(arg)
    if not isinstance(base, ConfigDict):
        raise ConfigError(f"{path}: get_config gave {base!r:.80}, want a ConfigDict")
    if replaced(base, lambda changes, path: "") != base.to_dict():
        raise ConfigError(
            f"{path}: get_config uses after(...), which all units would need, the one "
            "that it names as well: use it in the changes of units"
        )
    return base


def _units(give: Callable[[], Any], name: str, path: str) -> tuple[Unit, ...]:
    with config_module.named(path):
        units = give()
    if not isinstance(units, Sequence) or isinstance(units, str):
        raise ConfigError(f"{path}: {name}() gave {units!r:.80}, want a list of units")
    for n, unit in enumerate(units):
        good = isinstance(unit, Mapping) and all(isinstance(k, str) for k in unit)
        if not good:
            raise ConfigError(
                f"{path}: unit {n} of {name}() is {unit!r:.200}, want {{key: value}}"
            )
        if unit in units[:n]:
            first = units.index(unit)
            raise ConfigError(
                f"{path}: units {first} and {n} of {name}() are the same, {unit}: a "
                "repetition needs another seed"
            )
    if not units and name == "sweep":
        raise ConfigError(f"{path}: sweep() gave no units")
    return tuple(map(dict, units))


def _seeds(module: types.ModuleType, path: str) -> tuple[str, ...]:
    seeds = module.SEEDS
    if not isinstance(seeds, tuple | list) or not all(map(_is_text, seeds)):
        raise ConfigError(f"{path}: SEEDS = {seeds!r:.200}: want a tuple of keys")
    return tuple(seeds)


def _expected(module: types.ModuleType, path: str) -> Mapping[str, Any]:
    expected = module.EXPECTED
    if not isinstance(expected, Mapping) or not all(map(_is_text, expected)):
        raise ConfigError(
            f"{path}: EXPECTED = {expected!r:.200}: want a dict, name -> number of the "
            "paper and its source"
        )
    return dict(expected)


def _rules(module: types.ModuleType, path: str) -> tuple[Rule, ...]:
    rules = module.RULES
    if not isinstance(rules, tuple | list) or not rules:
        raise ConfigError(
            f"{path}: RULES = {rules!r:.200}: want at least one "
            "rm_jax.experiment.Rule(name, claim, source, decide)"
        )
    for rule in rules:
        if not isinstance(rule, Rule) or not all(map(_is_text, rule[:3])):
            raise ConfigError(
                f"{path}: RULES has {rule!r:.200}: want Rule(name, claim, source, "
                "decide), the first three of them text"
            )
        if not callable(rule.decide):
            raise ConfigError(f"{path}: rule {rule.name!r}: decide is no function")
    names = [rule.name for rule in rules]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{path}: RULES has {twice[0]!r} twice")
    return tuple(rules)


def _check_together(found: Experiment, path: str) -> None:
    """What is a matter of two parts: seeds that vary, units of both worlds."""
    changed = {key for unit in (*found.units, *found.null) for key in unit}
    for seed in found.seeds:
        if seed not in changed:
            raise ConfigError(
                f"{path}: SEEDS has {seed!r}, which no unit sets; they set "
                f"{sorted(changed)}"
            )
    for n, unit in enumerate(found.null):
        if unit in found.units:
            raise ConfigError(
                f"{path}: unit {n} of null() is one of sweep(), too: {unit}: the world "
                "in which the claims are false differs in some key"
            )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)
