"""Weights of others as parameters of ours: each tensor read once, placed at its home.

A `Source` names what there is; nothing of it is read before all names, shapes and kinds
are known to fit. Then one tensor after another is read, turned and written into its
place on the devices, so that the host holds about two of them at a time.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rm_jax import masks
from rm_jax.models import hf, hf_names
from rm_jax.models.arch import ArchConfig
from rm_jax.models.hf_families import Family
from rm_jax.weights.tensors import Source, WeightsError

# Names of the weight of a head of scores, and of its bias; None has none.
HEADS: tuple[tuple[str, str | None], ...] = (
    ("score.weight", "score.bias"),
    ("v_head.summary.weight", "v_head.summary.bias"),  # TRL's value head
    ("v_head.weight", "v_head.bias"),
    ("value_head.weight", "value_head.bias"),
    ("reward_head.weight", "reward_head.bias"),
    ("classifier.weight", "classifier.bias"),
)
SHOWN = 3  # names of tensors in a message


class Place(NamedTuple):
    """Where a parameter of a layer lives: an array, and the index into a stack."""

    path: str
    index: int | None


def places(shapes: Mapping[str, Any], arch: ArchConfig) -> dict[str, Place]:
    """Name with one name a layer -> where its numbers live.

    Args:
      shapes: path -> array or its shape, of one model.
      arch: of it.
    """
    each = masks.parameter_names({p: x.shape for p, x in shapes.items()}, arch.pattern)
    out = {}
    for path, names in each.items():
        stacked = masks.in_stack(path) is not None
        for i, name in enumerate(names):
            out[name] = Place(path, i if stacked else None)
    return out


def part(flat: Mapping[str, jax.Array], place: Place) -> jax.Array:
    """The numbers of one layer."""
    x = flat[place.path]
    return x if place.index is None else x[place.index]


def load(
    source: Source, arch: ArchConfig, like: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    """Parameters of the trunk, and of the head of tokens if the arch has one.

    Args:
      source: the weights.
      arch: of the model to fill.
      like: path -> shape, dtype and sharding, of one model; the head of scores and
        adapters are left out.

    Raises:
      WeightsError: a tensor that is missing, unknown, of another shape or not finite;
        names it.
    """
    trunk = {p: x for p, x in like.items() if not is_new(p)}
    plan = _plan(source, arch, trunk)
    out: dict[str, jax.Array] = {}
    for theirs, ours, turn in plan:
        arrays = [source.tensors[name].read() for name in theirs]
        for place, part in zip(ours, turn(arch, *arrays), strict=True):
            out[place.path] = _put(out.get(place.path), trunk[place.path], place, part)
        del arrays
    return out


def is_new(path: str) -> bool:
    """Whether a parameter is of no trunk: the head of scores, adapters."""
    return path.split("/")[0] == "head" or "/lora/" in path


def _put(
    array: jax.Array | None, like: jax.ShapeDtypeStruct, place: Place, part: np.ndarray
) -> jax.Array:
    part = np.asarray(part, like.dtype)
    if place.index is None:
        return jax.device_put(part, like.sharding)
    if array is None:
        zeros = functools.partial(jnp.zeros, like.shape, like.dtype)
        array = jax.jit(zeros, out_shardings=like.sharding)()
    return _write(array, part, place.index)


@functools.partial(jax.jit, donate_argnums=0)
def _write(stack: jax.Array, part: jax.Array, i: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stack, part, i, 0)


def _plan(
    source: Source, arch: ArchConfig, trunk: Mapping[str, jax.ShapeDtypeStruct]
) -> list[tuple[tuple[str, ...], tuple[Place, ...], Callable]]:
    """(names of theirs, places of ours, the way to ours), all of them checked."""
    of = hf.family(source.config)
    where = places(trunk, arch)
    prefix = _prefix(source, of)
    steps = []
    for rule in hf.rules(source.config, arch, tuple(where)):
        theirs = tuple(prefix + name for name in rule.theirs)
        steps.append((theirs, rule.ours, hf_names.TURNS[rule.turn]))
    if "lm_head" in where:
        steps.append(((of.lm_head,), ("lm_head",), hf_names.TURNS["same"]))
    covered = {name for _, ours, _ in steps for name in ours}
    if left := sorted(set(where) - covered):
        raise WeightsError(f"{source.where}: no tensor is known for {left[:SHOWN]}")
    beyond = {prefix + name for name in hf.layers_beyond(source.config, arch)}
    _check_names(source, of, {name for theirs, *_ in steps for name in theirs}, beyond)
    for theirs, ours, turn in steps:
        parts = [_part(trunk[where[n].path], where[n]) for n in ours]
        want = jax.eval_shape(functools.partial(turn.to_theirs, arch), *parts)
        for name, x in zip(theirs, want, strict=True):
            _check_shape(source, name, x.shape)
    return [
        (theirs, tuple(where[n] for n in ours), turn.to_ours)
        for theirs, ours, turn in steps
    ]


def _part(x: jax.ShapeDtypeStruct, place: Place) -> jax.ShapeDtypeStruct:
    shape = x.shape if place.index is None else x.shape[1:]
    return jax.ShapeDtypeStruct(shape, x.dtype)


def _prefix(source: Source, of: Family) -> str:
    """Of the trunk's tensors: a model with a head has one, a bare one has none."""
    return of.prefix if any(n.startswith(of.prefix) for n in source.tensors) else ""


def _check_names(
    source: Source, of: Family, wanted: set[str], beyond: set[str]
) -> None:
    """All that is wanted must be there, and nothing that is not known."""
    have = set(source.tensors) - beyond
    if missing := sorted(wanted - have):
        raise WeightsError(f"{source.where} lacks {_some(missing)}")
    heads = {name for pair in HEADS for name in pair}
    rest = have - wanted - heads - {of.lm_head}
    extra = sorted(n for n in rest if not hf.is_ignored(source.config, n))
    if extra:
        raise WeightsError(
            f"{source.where} holds {_some(extra)}, which no "
            f"{source.config['model_type']} has"
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _check_shape(source: Source, name: str, want: tuple[int, ...]) -> None:
    have = source.tensors[name].shape
    # Type 0 is all that is read of a table of types.
    types = name.endswith("token_type_embeddings.weight")
    if have[1:] != want[1:] if types else have != want:
        raise WeightsError(
            f"{source.where}: {name} has shape {list(have)}, its config wants "
            f"{list(want)}"
        )


class FoundHead(NamedTuple):
    """A head of scores among the weights.

    Attributes:
      name: of ours that computes it: linear, affine or attributes.
      params: path -> array, as that head has them.
      labels: what config.json calls each output, as far as it does.
    """

    name: str
    params: dict[str, np.ndarray]
    labels: tuple[str, ...] = ()


def head_of(source: Source, d_model: int) -> FoundHead:
    """The head of scores that the weights have.

    One output is "linear" (w . h), with a bias "affine"; several are "attributes".

    Raises:
      WeightsError: there is none, several, or one that no head of ours computes.
    """
    found = [(w, b) for w, b in HEADS if w in source.tensors]
    if not found:
        raise WeightsError(
            f"{source.where} has no head of scores ("
            f"{', '.join(w for w, _ in HEADS)}), but config.model.head.init = 'keep': "
            "set it to 'zero' or 'normal'"
        )
    if len(found) > 1:
        names = " and ".join(w for w, _ in found)
        raise WeightsError(
            f"{source.where} has several heads of scores, {names}: leave "
            "one in the folder, or set config.model.head.init to 'zero' or 'normal'"
        )
    if not hf.family(source.config).lm_head:
        raise WeightsError(
            f"{source.where}: the head of a {source.config['model_type']} reads a "
            "pooler, which no head here computes: config.model.head.init = 'keep' "
            "cannot be had, set it to 'zero' or 'normal'"
        )
    weight, bias = found[0]
    shape = source.tensors[weight].shape
    if len(shape) != 2 or shape[1] != d_model:
        raise WeightsError(
            f"{source.where}: {weight} has shape {list(shape)}, want [n, {d_model}]"
        )
    kernel = np.asarray(source.tensors[weight].read(), np.float32)
    offset = None
    if bias in source.tensors:
        if source.tensors[bias].shape != shape[:1]:
            raise WeightsError(
                f"{source.where}: {bias} has shape {list(source.tensors[bias].shape)}, "
                f"want {list(shape[:1])}"
            )
        offset = np.asarray(source.tensors[bias].read(), np.float32)
    if shape[0] == 1 and offset is None:
        return FoundHead("linear", {"head": kernel[0]})
    if shape[0] == 1:
        return FoundHead("affine", {"head/kernel": kernel[0], "head/bias": offset[0]})
    zero = np.zeros(shape[0], np.float32)
    offset = zero if offset is None else offset
    params = {"head/kernel": kernel.T, "head/bias": offset}
    return FoundHead("attributes", params, _labels(source.config, shape[0]))


def _labels(config: Mapping[str, Any], n: int) -> tuple[str, ...]:
    """Names of n outputs by id2label, whose keys are numbers as text; () of none."""
    given = config.get("id2label")
    given = given if isinstance(given, dict) else {}
    return tuple(str(given[str(i)]) for i in range(n) if str(i) in given)


def as_attributes(
    found: FoundHead, attributes: Sequence[str], where: str
) -> dict[str, np.ndarray]:
    """Parameters of a head of attributes, its outputs in the order of the data's.

    Args:
      found: the head; its outputs are in an order of their own.
      attributes: of the model, as the training data name them.
      where: the weights, for the message.

    Raises:
      WeightsError: the head's names are not exactly the data's; it has both.
    """
    if sorted(found.labels) != sorted(attributes):
        raise WeightsError(
            f"{where}: id2label of config.json calls the outputs of the head "
            f"{list(found.labels)}, the ratings of the training data are "
            f"{list(attributes)}: make the names the same in one of the two, or set "
            "config.model.head.init = 'zero'"
        )
    order = [found.labels.index(name) for name in attributes]
    return {path: x[..., order] for path, x in found.params.items()}
