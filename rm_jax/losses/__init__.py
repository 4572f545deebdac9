"""Losses: pure functions in one dict, chosen by name, with their knobs as arrays.

A loss is `loss(out, labels, hparams, key) -> f32[e]`: one value an example; the step
weights and averages them once. Where a name is expected, "package.module:function"
works as well, and in Python `choose(config, losses={**LOSSES, "mine": f})`.

>>> objective = choose({"name": "bradley_terry", "margin": 1.0})
>>> float(objective.hparams["loss"].margin)
1.0
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jaxtyping import Array, Float

from rm_jax.losses.checks import (
    check_labels,
    check_outputs,
    check_parameter_terms,
    check_terms,
    check_values,
)
from rm_jax.losses.distributional import gaussian_mle, gaussian_reparam, quantile
from rm_jax.losses.grm import grm_dpo, grm_sft
from rm_jax.losses.knobs import (
    Needs,
    Range,
    knob_class,
    needed,
    read_knobs,
    suggestion,
)
from rm_jax.losses.listwise import best_of_k, bt_kwise, plackett_luce
from rm_jax.losses.margins import (
    adaptive_margin,
    hinge,
    margin_bt,
    margin_mse,
    scaled_bt,
)
from rm_jax.losses.nnm import NNM
from rm_jax.losses.noise import label_smooth, robust_bt, soft_label
from rm_jax.losses.objective import PAIRS, TOKEN_LOGP, Objective
from rm_jax.losses.odin import odin, odin_orthogonal, odin_sums
from rm_jax.losses.pairwise import bradley_terry, bt
from rm_jax.losses.pointwise import binary, ordinal, regress
from rm_jax.losses.process import implicit_prm_ce, prm_bce, prm_hard, prm_soft
from rm_jax.losses.regularize import (
    Regularizer,
    center,
    length_correlation,
    length_sums,
    pos_reg,
    score_l2,
    winner_sums,
)
from rm_jax.losses.shapes import ce_pointwise, focal, focal_penalty, tempered_bt
from rm_jax.losses.ties import davidson, rao_kupper
from rm_jax.losses.vib import vib, vib_averaged
from rm_jax.types import Labels, RewardOutput

__all__ = [
    "LOSSES",
    "REGULARIZERS",
    "Needs",
    "Objective",
    "Range",
    "Regularizer",
    "check_labels",
    "check_parameter_terms",
    "check_outputs",
    "check_terms",
    "check_values",
    "choose",
    "example_terms",
    "global_terms",
    "parameter_terms",
    "sums",
]

LOSSES: dict[str, Callable[..., Array]] = {
    # on pairs
    "bradley_terry": bradley_terry,
    "bt": bt,
    "margin_bt": margin_bt,
    "scaled_bt": scaled_bt,
    "hinge": hinge,
    "focal": focal,
    "focal_penalty": focal_penalty,
    "margin_mse": margin_mse,
    "tempered_bt": tempered_bt,
    "label_smooth": label_smooth,
    "robust_bt": robust_bt,
    "soft_label": soft_label,
    "adaptive_margin": adaptive_margin,
    "ce_pointwise": ce_pointwise,
    "rao_kupper": rao_kupper,
    "davidson": davidson,
    # on whole lists
    "bt_kwise": bt_kwise,
    "plackett_luce": plackett_luce,
    "best_of_k": best_of_k,
    # on ratings of single responses
    "regress": regress,
    "ordinal": ordinal,
    "binary": binary,
    "quantile": quantile,
    "gaussian_mle": gaussian_mle,
    "gaussian_reparam": gaussian_reparam,
    # on steps
    "prm_bce": prm_bce,
    "prm_hard": prm_hard,
    "prm_soft": prm_soft,
    "implicit_prm_ce": implicit_prm_ce,
}
REGULARIZERS: dict[str, Regularizer] = {
    "center": Regularizer(per_example=center),
    "score_l2": Regularizer(per_example=score_l2),
    "length_correlation": Regularizer(stats=length_sums, value=length_correlation),
    "pos_reg": Regularizer(stats=winner_sums, value=pos_reg),
    "odin": Regularizer(stats=odin_sums, value=odin),
    "odin_orthogonal": Regularizer(params=odin_orthogonal),
    "grm_sft": Regularizer(per_example=grm_sft),
    "grm_dpo": Regularizer(per_example=grm_dpo),
    "vib": Regularizer(per_example=vib),
    "vib_averaged": Regularizer(per_example=vib_averaged),
    "lora_nnm": NNM,
}


def centred(config_loss: Any) -> bool:
    """Whether a loss fixes the level of the scores, not margins only.

    A penalty on scores does, and so does a loss on labels of single responses.

    Args:
      config_loss: config.loss, of known names.
    """
    name, terms = config_loss["name"], config_loss["regularizers"]
    of_one = {"ratings", "steps"} & set(getattr(LOSSES.get(name), "needs", ()))
    penalties = (
        dict(terms[n]).get("weight", 1.0) for n in ("center", "score_l2") if n in terms
    )
    return bool(of_one) or any(w > 0 for w in penalties) or name == "ce_pointwise"


def choose(
    config_loss: Mapping[str, Any],
    losses: Mapping[str, Callable[..., Array]] = LOSSES,
    regularizers: Mapping[str, Regularizer] = REGULARIZERS,
) -> Objective:
    """The objective that a config's `loss` section describes.

    A loss says what it cannot do without in attributes: labels, two responses that are
    compared or log p of tokens, in `fn.needs = ("strength", "pairs", "token_logp")`,
    outputs of the head in `fn.outputs = ("attributes",)`;
    a knob that needs a label when it is not 0 has `Needs("strength")` in its type; what
    values of a label it can use it says in `fn.allows`, see `knobs.Allowed`.

    Args:
      config_loss: {"name": ..., knob: value, ..., "regularizers": {name: {knob: ...}}};
        knobs left out have their defaults.
      losses: known losses.
      regularizers: known regularisers.

    Raises:
      ValueError: an unknown name or knob, with the known ones; a value out of range.
    """
    values = dict(config_loss)
    if "name" not in values:
        raise ValueError(f"config.loss has no name; known: {sorted(losses)}")
    name = values.pop("name")
    chosen = values.pop("regularizers", {})
    where = f"loss {name}"
    fn = _find("loss", name, losses)
    hparams = {"loss": read_knobs(knob_class(fn, where), values, where)}
    found = {}
    for reg, knobs in chosen.items():
        found[reg] = _find("regularizer", reg, regularizers)
        hparams[reg] = _regularizer_knobs(found[reg], knobs, f"regularizer {reg}")
    if "loss" in found:
        raise ValueError("a regularizer cannot be named 'loss': rename it")
    needs = _needs(fn, found, hparams, where)
    allowed = getattr(fn, "allows", lambda hparams: {})(hparams["loss"])
    allows = tuple((field, values, where) for field, values in allowed.items())
    return Objective(fn, found, hparams, needs, _outputs(fn, found, where), allows)


def example_terms(
    objective: Objective,
    out: RewardOutput,
    labels: Labels,
    hparams: Mapping[str, Any],
    key: Array,
) -> dict[str, Float[Array, "e"]]:
    """The loss and each per-example regulariser times its weight, by name.

    Their sum, averaged over examples, is minimised together with `global_terms`.

    Args:
      objective: of `choose`.
      out: of one model.
      labels: of the same chunk.
      hparams: like objective.hparams.
      key: each term gets its own key made of it.
    """
    key, own = jax.random.split(key)
    terms = {"loss": objective.loss(out, labels, hparams["loss"], own)}
    for name, reg in objective.regularizers.items():
        if reg.per_example is not None:
            key, own = jax.random.split(key)
            h = hparams[name]
            terms[name] = h.weight * reg.per_example(out, labels, h, own)
    return terms


def sums(
    objective: Objective,
    out: RewardOutput,
    labels: Labels,
    hparams: Mapping[str, Any],
) -> dict[str, Any]:
    """The sums that regularisers are functions of, by name; add them up over chunks."""
    return {
        name: reg.stats(out, labels, hparams[name])
        for name, reg in objective.regularizers.items()
        if reg.stats is not None
    }


def global_terms(
    objective: Objective,
    totals: Mapping[str, Any],
    hparams: Mapping[str, Any],
) -> dict[str, Float[Array, ""]]:
    """Each regulariser that is a function of sums over the step, times its weight.

    Args:
      objective: of `choose`.
      totals: `sums` added up over all chunks and hosts.
      hparams: like objective.hparams.
    """
    return {
        name: hparams[name].weight * reg.value(totals[name], hparams[name])
        for name, reg in objective.regularizers.items()
        if reg.value is not None
    }


def parameter_terms(
    objective: Objective,
    params: Any,
    hparams: Mapping[str, Any],
    across_members: bool = False,
) -> dict[str, Float[Array, ""]]:
    """Each regulariser that is a function of parameters, times its weight.

    Args:
      objective: of `choose`.
      params: parameters of the model.
      hparams: like objective.hparams.
      across_members: those that see all members at once, instead of the others.
    """
    return {
        name: hparams[name].weight * reg.params(params, hparams[name])
        for name, reg in objective.regularizers.items()
        if reg.params is not None and reg.across_members == across_members
    }


def _find(kind: str, name: str, table: Mapping[str, Any]) -> Any:
    if name in table:
        found = table[name]
    elif ":" in name:
        found = _imported(kind, name)
    else:
        raise ValueError(
            f"no {kind} {name!r}{suggestion(name, table)}; known: {sorted(table)}, or "
            f"package.module:function; a {kind} that a Python program handed to "
            "train() is known only there"
        )
    ok = callable(found) if kind == "loss" else isinstance(found, Regularizer)
    if not ok:
        want = "a function" if kind == "loss" else "an rm_jax.losses.Regularizer"
        raise ValueError(f"{kind} {name}: want {want}, got {found!r}")
    return found


def _imported(kind: str, name: str) -> Any:
    module, _, attribute = name.partition(":")
    try:
        found = importlib.import_module(module)
    except (Exception, SystemExit) as e:  # importing runs a module
        raise ValueError(
            f"{kind} {name}: cannot import {module!r}: {type(e).__name__}: {e}; is its "
            "folder installed or on PYTHONPATH?"
        ) from e
    if not hasattr(found, attribute):
        known = [n for n in vars(found) if not n.startswith("_")]
        near = suggestion(attribute, known)
        raise ValueError(f"{kind} {name}: {module} has no {attribute!r}{near}")
    return getattr(found, attribute)


def _regularizer_knobs(reg: Regularizer, values: Any, where: str) -> Any:
    if not hasattr(values, "items"):  # a ConfigDict is a mapping in all but type
        raise ValueError(f"{where} = {values!r}: want its knobs, {{'weight': number}}")
    parts = ("per_example", "params", "stats", "value")
    given = {n for n in parts if getattr(reg, n) is not None}
    if given not in ({"per_example"}, {"params"}, {"stats", "value"}):
        raise ValueError(
            f"{where} sets {sorted(given)}: want per_example, or params, or stats and "
            "value"
        )
    classes = {knob_class(getattr(reg, n), where) for n in given}
    if len(classes) != 1:
        raise ValueError(
            f"{where}: stats and value must take the same class of hparams, not "
            f"{sorted(c.__name__ for c in classes)}"
        )
    cls = classes.pop()
    if "weight" not in cls._fields:
        raise ValueError(
            f"{where}: its knobs {cls._fields} lack 'weight', which multiplies its term"
        )
    return read_knobs(cls, values, where)


def _outputs(
    fn: Callable, regs: Mapping[str, Regularizer], where: str
) -> dict[str, str]:
    outputs = {name: where for name in getattr(fn, "outputs", ())}
    for reg, parts in regs.items():
        for part in parts:  # a flag among them has no outputs
            for name in getattr(part, "outputs", ()):
                outputs[name] = f"regularizer {reg}"
    return outputs


def _needs(
    fn: Callable, regs: Mapping[str, Regularizer], hparams: Mapping, where: str
) -> dict[str, str]:
    needs = {field: where for field in getattr(fn, "needs", ())}
    for name, knobs in hparams.items():
        who = where if name == "loss" else f"regularizer {name}"
        needs.update({f: f"{who} with {why}" for f, why in needed(knobs).items()})
    for name, reg in regs.items():
        for part in reg:
            for field in getattr(part, "needs", ()):
                needs[field] = f"regularizer {name}"
    for field, who in needs.items():
        known = [*Labels._fields, PAIRS, TOKEN_LOGP]
        if field not in known:
            raise ValueError(f"{who} needs {field!r}, which is not one of {known}")
    return needs
