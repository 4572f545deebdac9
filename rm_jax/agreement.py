"""What the knobs of a config must agree in, beyond the limits of each."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rm_jax.limits import FOREIGN, MOST, ConfigError


def check(v: Mapping[str, Any]) -> None:
    """Checks what knobs must agree in; each by itself is sound (limits.check).

    Args:
      v: dotted key -> value, every key of configs/base.py among them.

    Raises:
      ConfigError: the first knobs that do not agree, and what would do.
    """
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
