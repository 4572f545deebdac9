"""Whether an objective can be had: labels of the data, outputs of the head, shapes."""

from collections.abc import Callable, Mapping, Set
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rm_jax.losses.objective import PAIRS, TOKEN_LOGP, Objective
from rm_jax.types import Labels, RewardOutput

# How a source can be given what it lacks.
SAID = {
    PAIRS: "two responses that are ranked, or a `soft` label",
    "soft": "`soft`, the probability that response 0 beats response 1",
    "strength": "`strength`, the strength of the preference",
    "ratings": "`ratings` of its responses",
    "steps": "labelled `steps`",
    "reference_logp": "`reference_logp`, log p of each response under a reference",
}


def check_labels(
    objective: Objective, sources: Mapping[str, Mapping[str, int]]
) -> list[str]:
    """Fails where a source has none of a label that the objective needs.

    Args:
      objective: of `choose`.
      sources: what config calls a source of the training data -> label -> its examples
        that have it; "examples" is all of them.

    Returns:
      A line for each source of which some examples lack a label: they count as the
      docstring of the loss says.

    Raises:
      ValueError: naming the label, the source, who needs it and what there is.
    """
    said = []
    for field, who in objective.needs.items():
        for source, given in sources.items() if field != TOKEN_LOGP else ():
            n, have = given["examples"], given.get(field, 0)
            wanted = SAID.get(field, f"`{field}`")
            if not have:
                known = sorted(set(given) - {"examples"})
                raise ValueError(
                    f"{source}: none of its {n} examples has {wanted}, which {who} "
                    f"needs; they have {known}: choose another loss, leave the source "
                    "out, or give its records that field"
                )
            if have < n:
                said.append(
                    f"{source}: {n - have} of its {n} examples lack {wanted}, which "
                    f"{who} needs: they count as its docstring says"
                )
    return said


def check_values(
    objective: Objective,
    first_not: Callable[[str, Callable], tuple[str, str, float] | None],
) -> None:
    """Fails where a label has a value that the objective cannot use.

    Args:
      objective: of `choose`.
      first_not: (field of Labels, whether values may be had) -> what config calls the
        source, id and value of the first one that may not; None where all may.

    Raises:
      ValueError: naming the source, the example, the value and the values allowed.
    """
    for field, allowed, who in objective.allows:
        if found := first_not(field, allowed.holds):
            source, example, value = found
            raise ValueError(
                f"{source}: example {example!r} has {field} {value:g}, which {who} "
                f"cannot use: want it in {allowed}; rescale the field, or choose "
                "another loss or its knobs"
            )


def check_outputs(
    objective: Objective, head: str, outputs: Set[str], known: Mapping[str, Set[str]]
) -> None:
    """Fails where the objective reads what the model's head does not give.

    Args:
      objective: of `choose`.
      head: name of the head.
      outputs: what it gives beside scores.
      known: head -> what it gives.

    Raises:
      ValueError: naming the output, who needs it and the heads that have it.
    """
    for name, who in objective.outputs.items():
        if name not in outputs:
            others = sorted(n for n, given in known.items() if name in given)
            raise ValueError(
                f"{who} needs the output {name!r}, which the head {head!r} does not "
                f"give: set config.model.head.name to one of {others}"
            )


def check_terms(
    objective: Objective, attributes: int, outputs: Mapping[str, tuple[int, ...]]
) -> None:
    """Traces the loss and every regulariser that is per example, without a model.

    Args:
      objective: of `choose`.
      attributes: ratings that the training data have.
      outputs: of the head -> their shape after [e k].

    Raises:
      ValueError: naming the function that fails, or returns something else than one
        float for each example.
    """
    e, k = 3, 2
    shape = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype)
    labels = Labels(
        ranks=shape(e, k, dtype=jnp.int32),
        present=shape(e, k, dtype=jnp.int32),
        soft=shape(e),
        strength=shape(e),
        weight=shape(e),
        ratings=shape(e, k, attributes),
        steps=shape(e, k, *outputs.get("steps", (0,))),
        lengths=shape(e, k, dtype=jnp.int32),
        ids=shape(e, dtype=jnp.int32),
        source=shape(e, dtype=jnp.int32),
        reference_logp=shape(e, k),
    )
    logp = shape(e, k) if objective.needs_token_logp else None
    aux = {name: shape(e, k, *rest) for name, rest in outputs.items()}
    out = RewardOutput(shape(e, k), aux, logp)
    key = jax.eval_shape(lambda: jax.random.key(0))
    terms: dict[str, Callable[..., Array]] = {"loss": objective.loss}
    regularizers = objective.regularizers.items()
    terms |= {n: r.per_example for n, r in regularizers if r.per_example is not None}
    for name, fn in terms.items():
        who = "the loss" if name == "loss" else f"regularizer {name}"
        who = (
            f"{who}, {getattr(fn, '__module__', '')}:{getattr(fn, '__qualname__', fn)}"
        )
        try:
            found = jax.eval_shape(fn, out, labels, objective.hparams[name], key)
        except Exception as error:  # somebody's function: whatever it raises, named
            why = str(error).strip().partition("\n")[0]
            raise ValueError(f"{who}, fails: {type(error).__name__}: {why}") from error
        if not _one_float_each(found, e):
            raise ValueError(
                f"{who}, returns {_described(found)} for {e} examples: want one float "
                f"an example, shape ({e},); the step weights and averages them"
            )


def _one_float_each(found: Any, e: int) -> bool:
    if not isinstance(found, jax.ShapeDtypeStruct):
        return False
    return found.shape == (e,) and jnp.issubdtype(found.dtype, jnp.floating)


def _described(found: Any) -> str:
    if isinstance(found, jax.ShapeDtypeStruct):
        return f"{found.dtype} of shape {found.shape}"
    return repr(found)


def check_parameter_terms(objective: Objective, params: Any) -> None:
    """Traces the regularisers that are functions of parameters.

    Args:
      objective: of `choose`.
      params: shapes of the parameters of one model.

    Raises:
      ValueError: naming the one that fails, or is no scalar.
    """
    stacked = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), params
    )
    for name, reg in objective.regularizers.items():
        if reg.params is None:
            continue
        given = stacked if reg.across_members else params
        try:
            found = jax.eval_shape(reg.params, given, objective.hparams[name])
        except Exception as error:  # somebody's function: whatever it raises, named
            why = str(error).strip().partition("\n")[0]
            raise ValueError(f"regularizer {name} fails: {why}") from error
        if getattr(found, "shape", None) != ():
            raise ValueError(
                f"regularizer {name} returns {_described(found)}: want one number"
            )
