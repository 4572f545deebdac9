"""Several models in one program: a leading axis m on whatever is a member's own.

share      what has the axis
none       everything: full models, or the units of a sweep
adapters   the LoRA adapters and the head; the frozen trunk is there once
trunk      the head; one trunk is trained for all

Members that share no trained parameter are independent: each has its own gradient,
clipping, optimiser and guard, exactly those of its run alone. A shared trunk is trained
on the mean of its members' losses.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

SHARES = ("none", "adapters", "trunk")
AXIS = "member"  # of the mesh


class Members(NamedTuple):
    """How many models a program has, and what they share.

    Attributes:
      count: m.
      share: one of SHARES.
      at_once: members whose gradients a program computes side by side; the others
        follow in turns, in the same memory. Divides count.
      own_batches: whether every member has a batch of its own.
      runs: whether they are runs of their own, which must not know of each other.
    """

    count: int
    share: str = "none"
    at_once: int = 0
    own_batches: bool = False
    runs: bool = False

    @property
    def independent(self) -> bool:
        """Whether no trained parameter belongs to two members."""
        return self.share != "trunk"


def owns(path: str, share: str) -> bool:
    """Whether a parameter, named "a/b/c", has the axis of members."""
    parts = path.split("/")
    if share == "none":
        return True
    return parts[0] == "head" or (share == "adapters" and "lora" in parts)


def axes(params: Any, share: str) -> Any:
    """0 for every leaf that has the axis of members, None for those that are shared."""

    def axis(path, _):
        return 0 if owns("/".join(str(entry.key) for entry in path), share) else None

    return jax.tree_util.tree_map_with_path(axis, params)


def take(params: Any, share: str, member: int | jax.Array) -> Any:
    """The parameters of one member, as if it had been trained alone."""
    flat, tree = jax.tree.flatten(params)
    which = jax.tree.leaves(axes(params, share), is_leaf=lambda x: x is None)
    return tree.unflatten(
        x if axis is None else x[member] for x, axis in zip(flat, which, strict=True)
    )


def stack(params: list[Any], share: str) -> Any:
    """Parameters of members in one tree; what they share is the first one's."""
    first, which = params[0], axes(params[0], share)
    return jax.tree.map(
        lambda axis, *xs: xs[0] if axis is None else jnp.stack(xs),
        which,
        first,
        *params[1:],
        is_leaf=lambda x: x is None,
    )


def lift(
    members: Members | None, f: Callable, in_axes: tuple, turns: bool = False
) -> Callable:
    """`f` of one model as a function of all members; `f` itself for a single model.

    Args:
      members: None for a single model.
      f: a pure function of arrays.
      in_axes: one an argument, a prefix of it: 0 where it has the axis of members.
      turns: whether at_once counts: `f` is what needs the memory.
    """
    if members is None:
        return f
    n = members.at_once if turns else 0

    def whole(*args):
        flat, tree = jax.tree.flatten(args)
        which = _axis_of_each(in_axes, args)
        side_by_side = jax.vmap(
            lambda *flat: f(*tree.unflatten(flat)), which, spmd_axis_name=AXIS
        )
        if n in (0, members.count):
            return side_by_side(*flat)

        def group(own):
            own = iter(own)
            return side_by_side(
                *(
                    x if a is None else next(own)
                    for x, a in zip(flat, which, strict=True)
                )
            )

        own = [_in_groups(x, n) for x, a in zip(flat, which, strict=True) if a == 0]
        return jax.tree.map(_from_groups, jax.lax.map(group, own))

    return whole


def _axis_of_each(in_axes: tuple, args: tuple) -> tuple[int | None, ...]:
    """The axis of every leaf of the arguments."""
    found: list[int | None] = []
    jax.tree.map(
        lambda axis, part: found.extend([axis] * len(jax.tree.leaves(part))),
        in_axes,
        args,
        is_leaf=lambda x: x is None,
    )
    return tuple(found)


def _in_groups(x: jax.Array, n: int) -> jax.Array:
    """[m ...] to [m/n n ...]: member i m/n + g is the i-th of group g.

    So a group has one member of every n-th part of the axis, and where it is sharded
    over n devices no array moves.
    """
    return jnp.swapaxes(x.reshape(n, x.shape[0] // n, *x.shape[1:]), 0, 1)


def _from_groups(x: jax.Array) -> jax.Array:
    x = jnp.swapaxes(x, 0, 1)
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])
