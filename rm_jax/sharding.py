"""The device mesh and where every array lives on it: ordered (regex, spec) rules.

Parameters, gradients, optimiser state and averages get their sharding by one pass over
their names, so nothing is ever placed by hand. First match wins.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("member", "data", "fsdp", "tensor")
BATCH = P(("data", "fsdp"))  # rows of a chunk
# Name of a parameter (suffix of a path) -> axes of its trailing dimensions.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"embed/embedding$|lm_head$", ("tensor", "fsdp")),
    (r"(q|k|v|gate|up)/lora/a$", ("fsdp", None)),
    (r"(q|k|v|gate|up)/lora/b$", (None, "tensor")),
    (r"(o|down)/lora/a$", ("tensor", None)),
    (r"(o|down)/lora/b$", (None, "fsdp")),
    (r"attn/(q|k|v)/kernel$", ("fsdp", "tensor")),
    (r"attn/o/kernel$", ("tensor", "fsdp")),
    (r"mlp/(gate|up)/kernel$", ("fsdp", "tensor")),
    (r"mlp/down/kernel$", ("tensor", "fsdp")),
    (r".*", ()),
)


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """Mesh of axes member, data, fsdp, tensor; one size may be -1: all that are left.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = [int(sizes[a]) for a in AXES]
    asked = f"config.mesh = {dict(zip(AXES, shape, strict=True))}"
    if shape.count(-1) > 1 or any(n == 0 or n < -1 for n in shape):
        raise ValueError(f"{asked}: sizes are 1 or more, and one of them may be -1")
    fixed = math.prod(n for n in shape if n != -1)
    some = "a multiple of " if -1 in shape else ""
    if -1 in shape:
        shape[shape.index(-1)] = len(devices) // fixed
    if math.prod(shape) != len(devices):
        raise ValueError(
            f"{asked} needs {some}{fixed} devices, but there are {len(devices)}: "
            "change a size, or set one to -1: all that are left"
        )
    return jax.make_mesh(shape, AXES, (AxisType.Auto,) * len(AXES), devices=devices)


def rows_divide(mesh: Mesh, rows: int, what: str) -> None:
    """Raises ValueError where a chunk's rows do not divide over data x fsdp."""
    n = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % n:
        raise ValueError(
            f"{what} has {rows} rows, which do not divide over mesh data x fsdp = {n} "
            "devices: raise config.batch.chunk_tokens to a multiple of that row length "
            f"x {n}"
        )


def spec_of(name: str, shape: Sequence[int], mesh: Mesh, members: bool = False) -> P:
    """PartitionSpec of a parameter by its name; leading dimensions (stacks) stay whole.

    Args:
      name: of the parameter.
      shape: of it.
      mesh: the devices.
      members: whether its first dimension is that of members.

    Raises:
      ValueError: an axis does not divide its dimension: names both.
    """
    axes = next(axes for pattern, axes in RULES if re.search(pattern, name))
    spec = (None,) * (len(shape) - len(axes)) + tuple(axes)
    if members:
        spec = ("member", *spec[1:])
    for size, axis in zip(shape, spec, strict=True):
        if axis is not None and size % mesh.shape[axis]:
            raise ValueError(
                f"{name} {tuple(shape)}: dimension {size} does not divide over mesh "
                f"axis {axis} = {mesh.shape[axis]}: change config.mesh.{axis} or the "
                "model's size"
            )
    return P(*spec)


def path_name(path: Sequence[Any]) -> str:
    """ "a/b/0" of a tree path."""
    keys = []
    for entry in path:
        for attribute in ("key", "name", "idx"):
            if hasattr(entry, attribute):
                keys.append(str(getattr(entry, attribute)))
                break
    return "/".join(keys)


def tree_shardings(tree: Any, params: Any, mesh: Mesh, owned: Any = None) -> Any:
    """NamedSharding of every leaf of a tree of arrays or ShapeDtypeStructs.

    What has the path of a parameter as its last part, and its shape, lives where the
    parameter does: moments, averages. All else is whole on every device: counters,
    factored statistics.

    Args:
      tree: e.g. a train state.
      params: the parameters, whose names RULES are about.
      mesh: the devices.
      owned: like params, 0 for those whose first dimension is that of members.

    Raises:
      ValueError: an axis does not divide its dimension: names both.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    shapes = {path_name(path): x.shape for path, x in leaves}
    of_members = jax.tree_util.tree_flatten_with_path(owned)[0]
    members = {path_name(path) for path, _ in of_members}

    def place(path, x):
        own = next((n for n in _endings(path_name(path)) if n in shapes), None)
        same = shapes.get(own) == x.shape
        spec = spec_of(own, x.shape, mesh, own in members) if same else P()
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(place, tree)


def _endings(name: str) -> Iterator[str]:
    parts = name.split("/")
    return ("/".join(parts[i:]) for i in range(len(parts)))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh, own_batches: bool = False) -> NamedSharding:
    """Of the rows of a chunk; with a batch for each member, of [m b ...]."""
    return NamedSharding(mesh, P("member", *BATCH) if own_batches else BATCH)


def local_rows(mesh: Mesh, rows: int) -> slice:
    """The contiguous rows of a chunk that this process's devices hold.

    Raises:
      ValueError: they are not contiguous; use the default device order.
    """
    sharding = NamedSharding(mesh, BATCH)
    held = sorted(
        {
            i
            for index in sharding.addressable_devices_indices_map((rows,)).values()
            for i in range(*index[0].indices(rows))
        }
    )
    if held != list(range(held[0], held[-1] + 1)):
        raise ValueError(f"rows {held} of this host are not contiguous")
    return slice(held[0], held[-1] + 1)


def put_rows(
    mesh: Mesh, local: np.ndarray, rows: int, own_batches: bool = False
) -> jax.Array:
    """A chunk's array from this host's rows, of all members where each has its own."""
    axis = 1 if own_batches else 0
    shape = (*local.shape[:axis], rows, *local.shape[axis + 1 :])
    first = local_rows(mesh, rows).start

    def part(index):
        begin, end, _ = index[axis].indices(rows)
        here = slice(begin - first, end - first)
        return local[(*index[:axis], here, *index[axis + 1 :])]

    return jax.make_array_from_callback(shape, batch_sharding(mesh, own_batches), part)


def put_whole(mesh: Mesh, value: np.ndarray) -> jax.Array:
    """An array that every host has whole, replicated."""
    return jax.make_array_from_process_local_data(
        replicated(mesh), np.asarray(value), np.shape(value)
    )
