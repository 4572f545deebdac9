"""Heads: from the pooled vector of a response to its score, and what losses ask beside.

A head is a dict entry of pure functions over its own parameters, a small tree. All of
it is float32 with the highest matmul precision. `scores` is the reward; losses and
regularisers name the other outputs that they read.

>>> sorted(HEADS["gaussian"].outputs)
['attributes', 'log_std']
"""

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rm_jax.models.arch import ArchConfig
from rm_jax.models.stepwise import reduced

Outputs = dict[str, Array]


class Pooled(NamedTuple):
    """What a head sees of each slot.

    Attributes:
      response: the pooled vector of the response.
      prompt: the vector of the prompt's last token; None for heads that do not ask.
      lengths: tokens of the response.
    """

    response: Float[Array, "b s d"]
    prompt: Float[Array, "b s d"] | None
    lengths: Float[Array, "b s"]


class Head(NamedTuple):
    """One kind of head.

    Attributes:
      init: (key, arch) -> parameters.
      apply: (parameters, Pooled, arch, key) -> {"scores": [b s], name: [b s ...]}; a
        key means training, None an evaluation.
      outputs: name -> (arch -> shape after [b s]) of what comes beside the scores.
      knobs: name -> default, of `config.model.head`.
      prompt: whether Pooled.prompt is read.
      of_attributes: whether it predicts the ratings of the data.
      steps: outputs that are one a step, [e k p]; with any, each step of a response is
        scored at its last token, and p is the slots of a row.
      combine: (outputs [e k ...], present [e k], arch) -> outputs; for heads whose
        scores depend on the other responses of the example, or on their steps.
      zero: whether it may start at 0; else it has a start of its own.
    """

    init: Callable[[Array, ArchConfig], Any]
    apply: Callable[[Any, Pooled, ArchConfig, Array | None], Outputs]
    outputs: Mapping[str, Callable[[ArchConfig], tuple[int, ...]]] = {}
    knobs: Mapping[str, Any] = {}
    prompt: bool = False
    of_attributes: bool = False
    steps: tuple[str, ...] = ()
    combine: Callable[[Outputs, Array, ArchConfig], Outputs] | None = None
    zero: bool = True


def find(name: str) -> Head:
    """The head of this name, or of "package.module:HEAD".

    Raises:
      ValueError: an unknown name, with the known ones.
    """
    if name in HEADS:
        return HEADS[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ValueError(
            f"config.model.head.name = {name!r}; known: {sorted(HEADS)}, or "
            "package.module:HEAD"
        )
    found = getattr(importlib.import_module(module), attribute, None)
    if not isinstance(found, Head):
        raise ValueError(
            f"config.model.head.name = {name!r} is {found!r:.80}: want an "
            "rm_jax.models.heads.Head"
        )
    return found


def choose(
    config_head: Mapping[str, Any], attributes: Sequence[str]
) -> tuple[str, dict[str, Any]]:
    """Name and knobs of the head that `config.model.head` describes.

    Args:
      config_head: {"name": ..., "init": ..., knob: value, ...}; knobs left out have
        their defaults.
      attributes: names of the ratings of the training data.

    Raises:
      ValueError: an unknown name or knob, with the known ones; a value of another type
        than the default; a head of attributes for data without ratings.
    """
    values = dict(config_head)
    name, init = values.pop("name"), values.pop("init")
    head = find(name)
    for knob, value in values.items():
        if knob not in head.knobs:
            raise ValueError(
                f"config.model.head.{knob}: head {name} has the knobs "
                f"{dict(head.knobs)}"
            )
        _check(f"config.model.head.{knob}", value, head.knobs[knob])
    if init == "zero" and not head.zero:
        raise ValueError(
            f"config.model.head.init = 'zero': the head {name} has parts that differ "
            "only by how they start: choose 'normal'"
        )
    if head.of_attributes and not attributes:
        others = sorted(n for n, h in HEADS.items() if not h.of_attributes)
        raise ValueError(
            f"config.model.head.name = {name!r} predicts ratings, and the training "
            "data have none: name their columns in config.data.columns, or choose "
            f"another head of {others}"
        )
    return name, {**head.knobs, **values}


def _check(where: str, value: Any, default: Any) -> None:
    """A knob has the type of its default; whole numbers count something, so from 1."""
    if isinstance(default, tuple):
        ok = isinstance(value, tuple | list) and all(_counts(n) for n in value)
    elif isinstance(default, Mapping):
        ok = hasattr(value, "values") and all(
            isinstance(v, int | float) and math.isfinite(v) for v in value.values()
        )
    elif isinstance(default, float):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        ok = number and 0.0 <= value < 1.0
    elif isinstance(default, int):
        ok = _counts(value)
    else:
        ok = isinstance(value, type(default))
    if not ok:
        raise ValueError(f"{where} = {value!r:.80}: want a value like {default!r}")


def _counts(value: Any) -> bool:
    return type(value) is int and 1 <= value <= 2**20


def dot(x: Float[Array, "*b d"], kernel: Float[Array, "d *n"]) -> Float[Array, "..."]:
    """x · kernel over the last axis of x, in full float32 on every backend."""
    return jnp.tensordot(x, kernel, axes=1, precision=jax.lax.Precision.HIGHEST)


def affine(x: Float[Array, "*b d"], layer: Mapping[str, Array]) -> Float[Array, "..."]:
    """x · kernel + bias."""
    ahead = (None,) * (x.ndim - 1)
    return dot(x, layer["kernel"]) + layer["bias"][ahead]


def start(key: Array, arch: ArchConfig, *shape: int) -> Float[Array, "..."]:
    """A last kernel by arch.head_init: zeros, or N(0, 1/(n + 1)), n its inputs."""
    if arch.head_init == "zero":
        return jnp.zeros(shape, jnp.float32)
    return jax.random.normal(key, shape, jnp.float32) * (shape[0] + 1) ** -0.5


def hidden(key: Array, n: int, m: int) -> dict[str, Array]:
    """A hidden layer: kernel N(0, 2/n) (He 2015, for ReLU), bias 0."""
    kernel = jax.random.normal(key, (n, m), jnp.float32) * math.sqrt(2.0 / n)
    return {"kernel": kernel, "bias": jnp.zeros((m,), jnp.float32)}


# --- linear ---------------------------------------------------------------------------


def _linear_init(key: Array, arch: ArchConfig) -> Array:
    return start(key, arch, arch.d_model)


def _linear(params: Array, x: Pooled, arch: ArchConfig, key: Array | None) -> Outputs:
    """r = w · h, without a bias: no loss on pairs has a gradient for one."""
    return {"scores": dot(x.response, params)}


# --- mlp ------------------------------------------------------------------------------


def _mlp_init(key: Array, arch: ArchConfig) -> dict[str, Any]:
    keys = jax.random.split(key, len(arch.knob("hidden")) + 1)
    layers, n = {}, arch.d_model
    for i, m in enumerate(arch.knob("hidden")):
        layers[f"hidden_{i}"] = hidden(keys[i], n, m)
        n = m
    return layers | {"kernel": start(keys[-1], arch, n)}


def _mlp(params: Any, x: Pooled, arch: ArchConfig, key: Array | None) -> Outputs:
    """r = w · relu(W_n ... relu(W_1 h + b_1) ... + b_n), dropout after each (GRM)."""
    h = x.response
    for i in range(len(arch.knob("hidden"))):
        layer = params[f"hidden_{i}"]
        h = jax.nn.relu(affine(h, layer))
        h = _dropped(h, arch.knob("dropout"), key, i)
    return {"scores": dot(h, params["kernel"])}


def _dropped(h: Array, rate: float, key: Array | None, i: int) -> Array:
    if key is None or not rate:
        return h
    keep = jax.random.bernoulli(jax.random.fold_in(key, i), 1.0 - rate, h.shape)
    return jnp.where(keep, h / (1.0 - rate), 0.0)


# --- attributes, gated ----------------------------------------------------------------


def _attributes_init(key: Array, arch: ArchConfig) -> dict[str, Array]:
    a = len(arch.attributes)
    return {
        "kernel": start(key, arch, arch.d_model, a),
        "bias": jnp.zeros((a,), jnp.float32),
    }


def _attributes(params: Any, x: Pooled, arch: ArchConfig, key: Array | None) -> Outputs:
    """y = W h + b, one a rating of the data; r = Σ weight y, by default the mean."""
    y = affine(x.response, params)
    return {"scores": dot(y, _weights(arch)), "attributes": y}


def _weights(arch: ArchConfig) -> Float[Array, "a"]:
    given = dict(arch.knob("weights"))
    if unknown := sorted(set(given) - set(arch.attributes)):
        raise ValueError(
            f"config.model.head.weights names {unknown}; the training data have the "
            f"attributes {list(arch.attributes)}"
        )
    if not given:
        return jnp.full((len(arch.attributes),), 1.0 / len(arch.attributes))
    return jnp.asarray([given.get(name, 0.0) for name in arch.attributes], jnp.float32)


def _gated_init(key: Array, arch: ArchConfig) -> dict[str, Any]:
    keys, a, n = jax.random.split(key, 3), len(arch.attributes), arch.knob("hidden")
    return {
        "attributes": _attributes_init(keys[0], arch),
        "hidden": hidden(keys[1], arch.d_model, n),
        "gate": jnp.zeros((n, a), jnp.float32),  # all attributes alike at the start
    }


def _gated(params: Any, x: Pooled, arch: ArchConfig, key: Array | None) -> Outputs:
    """r = Σ g(prompt)_a (y_a - λ_a y_verbosity), g a softmax: ArmoRM (Wang 2024).

    λ_a, `debias`, is the share of the verbosity attribute taken off each other one.
    """
    y = affine(x.response, params["attributes"])
    h = jax.nn.relu(affine(x.prompt, params["hidden"]))
    gate = jax.nn.softmax(dot(h, params["gate"]), axis=-1)
    out = {"attributes": y, "gate": gate}
    if verbosity := arch.knob("verbosity"):
        if verbosity not in arch.attributes:
            raise ValueError(
                f"config.model.head.verbosity = {verbosity!r}; the training data have "
                f"the attributes {list(arch.attributes)}"
            )
        at = arch.attributes.index(verbosity)
        other = (jnp.arange(len(arch.attributes)) != at)[None, None]
        y = y - arch.knob("debias") * jnp.where(other, y[..., at : at + 1], 0.0)
    return out | {"scores": jnp.sum(gate * y, axis=-1)}


# --- distributions --------------------------------------------------------------------


def _quantiles_init(key: Array, arch: ArchConfig) -> dict[str, Array]:
    a, n = len(arch.attributes), arch.knob("quantiles")
    kernel = start(key, arch, arch.d_model, a * n).reshape(arch.d_model, a, n)
    return {"kernel": kernel, "bias": jnp.zeros((a, n), jnp.float32)}


def _quantiles(params: Any, x: Pooled, arch: ArchConfig, key: Array | None) -> Outputs:
    """q_τ = W_τ h + b_τ for each attribute; r = Σ weight (mean of q over τ) (QRM)."""
    q = affine(x.response, params)
    y = jnp.mean(q, axis=-1)
    return {"scores": dot(y, _weights(arch)), "attributes": y, "quantiles": q}


def _gaussian_init(key: Array, arch: ArchConfig) -> dict[str, Any]:
    keys = jax.random.split(key)
    return {
        n: _attributes_init(k, arch)
        for n, k in zip(("mean", "log_std"), keys, strict=True)
    }


def _gaussian(params: Any, x: Pooled, arch: ArchConfig, key: Array | None) -> Outputs:
    """μ and log σ of each rating, two affine maps; r = Σ weight μ (URM, Lou 2024)."""
    both = {n: affine(x.response, layer) for n, layer in params.items()}
    scores = dot(both["mean"], _weights(arch))
    log_std = jnp.clip(both["log_std"], *LOG_STD)
    return {"scores": scores, "attributes": both["mean"], "log_std": log_std}


LOG_STD = (-10.0, 5.0)  # beyond it e^-2σ or e^2σ is no float32 worth having


# --- two parts of which one is thrown away --------------------------------------------


def _odin_init(key: Array, arch: ArchConfig) -> dict[str, Array]:
    """Two different kernels, or nothing would ever tell them apart."""
    keys = jax.random.split(key)
    normal = lambda k: jax.random.normal(k, (arch.d_model,)) * arch.d_model**-0.5
    return {"quality": normal(keys[0]), "length": normal(keys[1])}


def _odin(params: Any, x: Pooled, arch: ArchConfig, key: Array | None) -> Outputs:
    """r = w_Q · h + w_L · h while training, w_Q · h after it (ODIN, Chen 2024)."""
    parts = {name: dot(x.response, params[name]) for name in ("quality", "length")}
    total = parts["quality"] if key is None else parts["quality"] + parts["length"]
    return {"scores": total} | parts


def _expert_init(key: Array, arch: ArchConfig) -> dict[str, Any]:
    keys, n = jax.random.split(key, 3), arch.knob("hidden")
    expert = hidden(keys[1], 2, n) | {"out": jnp.zeros((n,), jnp.float32)}
    return {"kernel": start(keys[0], arch, arch.d_model), "expert": expert}


def _expert(params: Any, x: Pooled, arch: ArchConfig, key: Array | None) -> Outputs:
    """r = w · h + f(length) while training, w · h after it (Shen 2023).

    f is a small MLP of the length in units of 256 tokens and of its logarithm: a
    product of experts, of which the one that knows only lengths takes what they
    explain.
    """
    main, expert = dot(x.response, params["kernel"]), params["expert"]
    l = jnp.stack([x.lengths / 256.0, jnp.log1p(x.lengths) - math.log(257.0)], axis=-1)
    bias = dot(jax.nn.relu(affine(l, expert)), expert["out"])
    scores = main if key is None else main + bias
    return {"scores": scores, "quality": main, "length": bias}


# --- bottleneck -----------------------------------------------------------------------


def _bottleneck_init(key: Array, arch: ArchConfig) -> dict[str, Any]:
    keys, n, d = jax.random.split(key, 3), arch.knob("latent"), arch.d_model
    normal = lambda k: jax.random.normal(k, (d, n), jnp.float32) * d**-0.5
    bias = jnp.full((n,), -1.0, jnp.float32)  # σ = e^-1: the latent says something
    return {
        "mean": normal(keys[0]),
        "log_std": {"kernel": 0.1 * normal(keys[1]), "bias": bias},
        "kernel": start(keys[2], arch, n),
    }


def _bottleneck(params: Any, x: Pooled, arch: ArchConfig, key: Array | None) -> Outputs:
    """r = w · z, z = μ(h) + ε σ(h), ε ~ N(0, 1) in training, 0 after it (InfoRM)."""
    mean = dot(x.response, params["mean"])
    log_std = jnp.clip(affine(x.response, params["log_std"]), *LOG_STD)
    z = mean
    if key is not None:
        z = mean + jax.random.normal(key, mean.shape) * jnp.exp(log_std)
    return {
        "scores": dot(z, params["kernel"]),
        "latent_mean": mean,
        "latent_log_std": log_std,
    }


# --- pairwise -------------------------------------------------------------------------


def _pair_init(key: Array, arch: ArchConfig) -> Array:
    n = arch.knob("planes")
    normal = jax.random.normal(key, (arch.d_model, n, 2), jnp.float32)
    return normal * (arch.d_model + 1) ** -0.5


def _pair(params: Array, x: Pooled, arch: ArchConfig, key: Array | None) -> Outputs:
    v = dot(x.response, params)
    return {"scores": jnp.zeros(v.shape[:2]), "embedding": v}


def _against(outputs: Outputs, present: Array, arch: ArchConfig) -> Outputs:
    """Δ(i, j) = Σ_p (u_ip v_jp - v_ip u_jp): antisymmetric, and may be cyclic.

    (u_p, v_p) are the coordinates of a response in the plane p. r_i = Σ_j Δ(i, j) / n
    over the n responses that the example has: for two of them r_0 - r_1 = Δ(0, 1), for
    more it is the mean preference over the others. Zhang 2024 (GPM, 2410.02197).
    """
    v = outputs["embedding"]
    u, w = v[..., 0], v[..., 1]
    one = lambda a, b: jnp.einsum(
        "eip,ejp->eij", a, b, precision=jax.lax.Precision.HIGHEST
    )
    both = (present[:, :, None] & present[:, None, :]).astype(jnp.float32)
    delta = (one(u, w) - one(w, u)) * both
    n = jnp.maximum(jnp.sum(present, axis=1, keepdims=True), 1)
    return outputs | {"scores": jnp.sum(delta, axis=2) / n, "preference": delta}


# --- steps ----------------------------------------------------------------------------


def _steps_init(key: Array, arch: ArchConfig) -> dict[str, Array]:
    kernel = start(key, arch, arch.d_model)
    return {"kernel": kernel, "bias": jnp.zeros((), jnp.float32)}


def _steps(params: Any, x: Pooled, arch: ArchConfig, key: Array | None) -> Outputs:
    """s = w · h + b at the end of each step, and of the response."""
    s = affine(x.response, params)
    return {"scores": s, "steps": s, "scored": jnp.ones_like(s)}


def _of_steps(outputs: Outputs, present: Array, arch: ArchConfig) -> Outputs:
    """r = log p / (1 - p), p the min, prod, last or mean of σ(s) over the steps.

    A response whose steps are not given is one step: r = s at its end.
    """
    steps, scored = outputs["steps"], outputs["scored"] > 0
    r = reduced(arch.knob("reduce"), steps, scored, outputs["scores"])
    return outputs | {"scores": r}


_none = lambda arch: ()
_of_data = lambda arch: (len(arch.attributes),)
_latent = lambda arch: (arch.knob("latent"),)
HEADS: dict[str, Head] = {
    "linear": Head(_linear_init, _linear),
    "mlp": Head(_mlp_init, _mlp, knobs={"hidden": (1024,), "dropout": 0.1}),
    "attributes": Head(
        _attributes_init,
        _attributes,
        {"attributes": _of_data},
        {"weights": {}},
        of_attributes=True,
    ),
    "gated": Head(
        _gated_init,
        _gated,
        {"attributes": _of_data, "gate": _of_data},
        {"hidden": 1024, "verbosity": "", "debias": 0.0},
        prompt=True,
        of_attributes=True,
    ),
    "quantiles": Head(
        _quantiles_init,
        _quantiles,
        {
            "attributes": _of_data,
            "quantiles": lambda arch: (len(arch.attributes), arch.knob("quantiles")),
        },
        {"quantiles": 19, "weights": {}},
        of_attributes=True,
    ),
    "gaussian": Head(
        _gaussian_init,
        _gaussian,
        {"attributes": _of_data, "log_std": _of_data},
        {"weights": {}},
        of_attributes=True,
    ),
    "odin": Head(_odin_init, _odin, {"quality": _none, "length": _none}, zero=False),
    "length_expert": Head(
        _expert_init, _expert, {"quality": _none, "length": _none}, {"hidden": 16}
    ),
    "bottleneck": Head(
        _bottleneck_init,
        _bottleneck,
        {"latent_mean": _latent, "latent_log_std": _latent},
        {"latent": 128},
    ),
    "pair": Head(
        _pair_init,
        _pair,
        {"embedding": lambda arch: (arch.knob("planes"), 2)},
        {"planes": 3},
        combine=_against,
        zero=False,
    ),
    "steps": Head(
        _steps_init,
        _steps,
        {"steps": _none, "scored": _none},
        {"reduce": "min"},
        steps=("steps", "scored"),
        combine=_of_steps,
    ),
}


def shapes(arch: ArchConfig, slots: int = 2) -> dict[str, tuple[int, ...]]:
    """What the head of a model gives beside the scores -> its shape after [e k].

    Args:
      arch: of the model.
      slots: of a row; a response has at most that many steps.
    """
    head = find(arch.head)
    of_step = lambda name: (slots,) if name in head.steps else ()
    return {name: of_step(name) + shape(arch) for name, shape in head.outputs.items()}
