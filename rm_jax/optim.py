"""Optimisers: what to step, how far, and (masks.py) which parameters."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from rm_jax import masks

Params = Mapping[str, Any]


class Optimizer(NamedTuple):
    """An optimiser bound to the parameters of one model.

    Attributes:
      hparams: its numbers as float32 arrays, to be kept in the train state:
        learning_rate, weight_decay, clip_norm and those that its rule reads.
      split: params -> (trainable, frozen), two nested dicts; `merge` undoes it. Take
        gradients of the first only.
      init: trainable -> state. Frozen leaves have none.
      update: (grads, state, trainable, hparams, step) -> (new trainable, state, stats),
        stats being {"grad_norm" before clipping, "update_norm", "learning_rate"}.
        `grads` is the gradient of the mean loss; `step` counts from 0.
    """

    hparams: dict[str, np.ndarray]
    split: Callable[[Params], tuple[dict, dict]]
    init: Callable[[Params], Any]
    update: Callable[..., tuple[dict, Any, dict[str, Array]]]


class Rule(NamedTuple):
    """A direction to step in: the hparams it reads and the transform made of them.

    Attributes:
      reads: names among b1, b2, eps.
      make: those by name -> optax transform of gradients.
      elementwise: whether a leaf's elements do not influence each other; if they do, a
        stack is transformed layer by layer, as if it were unrolled.
    """

    reads: tuple[str, ...]
    make: Callable[[Mapping[str, ArrayLike]], optax.GradientTransformation]
    elementwise: bool = True


def _adafactor(b2: ArrayLike) -> optax.GradientTransformation:
    """Factored second moments, decay min(b2, 1 - t^-0.8), update RMS clipped at 1."""
    decay = lambda i, power: jnp.minimum(b2, 1.0 - (i + 1.0) ** -power)
    return optax.chain(
        optax.scale_by_factored_rms(decay_rate=0.8, decay_rate_fn=decay),
        optax.clip_by_block_rms(1.0),
    )


# References: Loshchilov 2019 (AdamW); Chen 2023 (Lion); Shazeer 2018 (Adafactor, here
# without first moment and relative step) with the cap b2 of Zhai 2022.
RULES: dict[str, Rule] = {
    "adamw": Rule(
        ("b1", "b2", "eps"), lambda h: optax.scale_by_adam(h["b1"], h["b2"], h["eps"])
    ),
    "lion": Rule(("b1", "b2"), lambda h: optax.scale_by_lion(h["b1"], h["b2"])),
    "adafactor": Rule(("b2",), lambda h: _adafactor(h["b2"]), elementwise=False),
    "sgd": Rule(("b1",), lambda h: optax.trace(h["b1"])),
}
# Share of the way from the final to the peak rate, x in [0, 1] since the warm-up.
SCHEDULES: dict[str, Callable[[Array], Array]] = {
    "constant": lambda x: jnp.ones_like(x),
    "linear": lambda x: 1.0 - x,
    "cosine": lambda x: 0.5 * (1.0 + jnp.cos(math.pi * x)),
}


def make_optimizer(
    params: Params,
    *,
    n_pattern: int,
    total_steps: int,
    name: str,
    learning_rate: float,
    schedule: str,
    warmup_steps: int,
    final_fraction: float,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    clip_norm: float,
    lr_multipliers: masks.Rules,
    weight_decay_multipliers: masks.Rules,
    elsewhere: Params | None = None,
) -> Optimizer:
    """The optimiser of a model's parameters.

    With g the gradient scaled to a global norm of at most clip_norm, u the rule's
    direction, a and d the factors of the two masks:

      p <- p - learning_rate schedule(step) a (u + weight_decay d p)

    Args:
      params: nested dict of arrays or of their shapes.
      n_pattern: layers in a group of the scanned stacks.
      total_steps: where the schedule ends.
      name: one of RULES.
      learning_rate: peak.
      schedule: one of SCHEDULES.
      warmup_steps: see `schedule_factor`.
      final_fraction: of the peak rate, at total_steps.
      b1: decay of the first moment; the momentum of sgd; adafactor keeps none.
      b2: decay of the second moment; in lion of the momentum; its cap in adafactor.
      eps: of adamw, added to the root of the second moment.
      weight_decay: decoupled from the gradient, times the learning rate.
      clip_norm: 0 is off. Frozen parameters do not count.
      lr_multipliers: (regex, factor) found anywhere in a name; the first match wins; 0
        freezes.
      weight_decay_multipliers: the same for weight decay.
      elsewhere: parameters that the masks are about, too, and that are not in the
        program: those of a trunk whose features are.

    Raises:
      ValueError: an unknown name, a value out of range, a mask that does not cover
        every parameter or has a pattern that decides nothing, nothing left to train.
    """
    rule = _known("name", name, RULES)
    _known("schedule", schedule, SCHEDULES)
    given = {"b1": b1, "b2": b2, "eps": eps}
    hparams = {n: given[n] for n in rule.reads}
    hparams |= {"learning_rate": learning_rate, "weight_decay": weight_decay}
    _check_numbers(hparams | {"clip_norm": clip_norm, "final_fraction": final_fraction})
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(
            f"optim.warmup = {warmup_steps} steps: must be in [0, {total_steps}], the "
            "length of the training"
        )
    # Off is an infinite norm, so that the program does not depend on the value.
    hparams["clip_norm"] = clip_norm or math.inf
    own, others = _flat(params), _flat(elsewhere or {})
    shapes = {path: leaf.shape for path, leaf in (own | others).items()}
    names = masks.parameter_names(shapes, n_pattern)

    def factors(key: str, rules: masks.Rules) -> dict[str, np.ndarray]:
        found = masks.factors(key, rules, names, shapes)
        return {path: found[path] for path in own}

    lr = factors("lr_multipliers", lr_multipliers)
    wd = factors("weight_decay_multipliers", weight_decay_multipliers)
    if not any(np.any(a) for a in lr.values()):
        raise ValueError("optim.lr_multipliers freezes everything: nothing to train")
    factor = functools.partial(
        schedule_factor,
        schedule=schedule,
        warmup_steps=warmup_steps,
        total_steps=total_steps,
        final_fraction=final_fraction,
    )
    plan = _Plan(rule, factor, lr, wd)
    hparams = {n: np.asarray(v, np.float32) for n, v in hparams.items()}
    return Optimizer(
        hparams,
        split=functools.partial(_split, plan),
        init=lambda trainable: _transform(plan, hparams).init(trainable),
        update=functools.partial(_update, plan),
    )


def merge(trainable: Params, frozen: Params) -> dict:
    """The parameters that `Optimizer.split` took apart."""
    return _nested(_flat(trainable) | _flat(frozen))


def schedule_factor(
    step: ArrayLike,
    *,
    schedule: str,
    warmup_steps: int,
    total_steps: int,
    final_fraction: float,
) -> Float[Array, ""]:
    """The learning rate at a step, as a fraction of its peak.

      (step + 1) / warmup_steps                                in the warm-up
      final + (1 - final) shape((step - warmup) / (total - warmup))     after it

    The first step already moves; the end of the schedule is the step after the last, so
    that no step has rate 0. Beyond it the rate stays final_fraction (of the peak).

    Args:
      step: from 0.
      schedule: one of SCHEDULES.
      warmup_steps: 0 starts at the peak.
      total_steps: steps of the training.
      final_fraction: what is left at the end.
    """
    step = jnp.asarray(step).astype(jnp.float32)
    x = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    shape = SCHEDULES[schedule](jnp.clip(x, 0.0, 1.0))
    after = final_fraction + (1.0 - final_fraction) * shape
    return jnp.where(step < warmup_steps, (step + 1.0) / max(warmup_steps, 1), after)


def ema_update(
    ema: PyTree[Array], params: PyTree[Array], decay: ArrayLike, step: ArrayLike
) -> PyTree[Array]:
    """The running average of parameters after one more, corrected for its start.

      ema_t = Σ_i d^(t-i) p_i / Σ_i d^(t-i),  i = 0 .. t

    by ema += (p - ema) (1 - d) / (1 - d^(t+1)): at t = 0 it is p_0, whatever `ema`
    held, so the start needs no copy that counts and the average can be used at once.

    Args:
      ema: like params.
      params: after the step.
      decay: d in [0, 1).
      step: t, averages taken before this one.
    """
    log_d = jnp.log(jnp.asarray(decay, jnp.float32))
    # expm1 keeps the digits of 1 - d for d near 1.
    share = jnp.expm1(log_d) / jnp.expm1((step + 1.0) * log_d)
    return jax.tree.map(lambda e, p: e + (p - e) * share, ema, params)


class _Plan(NamedTuple):
    """What an update needs besides arrays; factors are () or [g, 1, ...] by path."""

    rule: Rule
    schedule: Callable[[Array], Array]
    lr: dict[str, np.ndarray]
    wd: dict[str, np.ndarray]


def _split(plan: _Plan, params: Params) -> tuple[dict, dict]:
    live = {p: v for p, v in _flat(params).items() if np.any(plan.lr[p])}
    frozen = {p: v for p, v in _flat(params).items() if p not in live}
    return _nested(live), _nested(frozen)


def _update(
    plan: _Plan,
    grads: Params,
    opt_state: Any,
    params: Params,
    hparams: Mapping[str, ArrayLike],
    step: ArrayLike,
) -> tuple[dict, Any, dict[str, Array]]:
    old, moves = _flat(params), {p: a != 0 for p, a in plan.lr.items()}
    # Frozen layers of a stack have no share in the norm and gather no moments.
    grads = {p: jnp.where(moves[p], g, 0.0) for p, g in _flat(grads).items()}
    norm = optax.tree.norm(grads)
    scale = jnp.minimum(1.0, hparams["clip_norm"] / jnp.maximum(norm, 1e-30))
    grads = _nested({p: g * scale for p, g in grads.items()})
    u, opt_state = _transform(plan, hparams).update(grads, opt_state, params)
    rate = hparams["learning_rate"] * plan.schedule(step)
    change = {
        p: rate * plan.lr[p] * (d + hparams["weight_decay"] * plan.wd[p] * old[p])
        for p, d in _flat(u).items()
    }
    # Frozen ones lose exactly 0, even where the rate or the decay is not finite.
    change = {p: jnp.where(moves[p], c, 0.0) for p, c in change.items()}
    stats = {
        "grad_norm": norm,
        "update_norm": optax.tree.norm(change),
        "learning_rate": rate,
    }
    return _nested({p: old[p] - c for p, c in change.items()}), opt_state, stats


def _transform(
    plan: _Plan, hparams: Mapping[str, ArrayLike]
) -> optax.GradientTransformation:
    tx = plan.rule.make(hparams)
    return tx if plan.rule.elementwise else _layer_by_layer(tx)


def _layer_by_layer(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """`tx` with every index of a stack's leading axis a parameter of its own."""

    def parts(tree: Params) -> dict[str, dict]:
        flat = _flat(tree)
        stacked = {p: v for p, v in flat.items() if masks.in_stack(p)}
        rest = {p: v for p, v in flat.items() if p not in stacked}
        both = {"stacks": _nested(stacked), "rest": _nested(rest)}
        return {k: v for k, v in both.items() if v}

    def init(params: Params) -> dict[str, Any]:
        over = {"stacks": jax.vmap(tx.init), "rest": tx.init}
        return {k: over[k](v) for k, v in parts(params).items()}

    def update(grads: Params, state: dict, params: Params) -> tuple[dict, dict]:
        over = {"stacks": jax.vmap(tx.update), "rest": tx.update}
        gs, ps = parts(grads), parts(params)
        out = {k: over[k](gs[k], state[k], ps[k]) for k in gs}
        direction = functools.reduce(merge, (u for u, _ in out.values()))
        return direction, {k: new for k, (_, new) in out.items()}

    return optax.GradientTransformation(init, update)


_BOUNDS: dict[str, tuple[str, Callable[[float], bool]]] = {
    "learning_rate": ("above 0", lambda v: v > 0),
    "eps": ("above 0", lambda v: v > 0),
    "weight_decay": ("at least 0", lambda v: v >= 0),
    "clip_norm": ("at least 0", lambda v: v >= 0),
    "b1": ("in [0, 1)", lambda v: 0 <= v < 1),
    "b2": ("in [0, 1)", lambda v: 0 <= v < 1),
    "final_fraction": ("in [0, 1]", lambda v: 0 <= v <= 1),
}


def _check_numbers(values: Mapping[str, float]) -> None:
    for name, value in values.items():
        want, ok = _BOUNDS[name]
        if not (math.isfinite(value) and ok(value)):
            raise ValueError(f"optim.{name} = {value}: must be finite and {want}")


def _known(key: str, name: str, table: Mapping[str, Any]) -> Any:
    if name not in table:
        raise ValueError(f"optim.{key} = {name!r}: known are {sorted(table)}")
    return table[name]


def _flat(tree: Params) -> dict[str, Any]:
    return flatten_dict(dict(tree), sep="/")


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    return unflatten_dict(flat, sep="/")
