"""Labels and calls that the tests of all losses share."""

import jax
import jax.numpy as jnp
import numpy as np

from rm_jax.types import Labels, RewardOutput

KEY = jax.random.key(0)


def make_labels(ranks, **fields):
    """Labels of whole examples; a field that is not given is not known."""
    ranks = np.asarray(ranks, np.int32)
    e, k = ranks.shape
    nan = np.full(e, np.nan, np.float32)
    labels = Labels(
        ranks=ranks,
        present=np.ones((e, k), np.int32),
        soft=nan,
        strength=nan,
        weight=np.ones(e, np.float32),
        ratings=np.full((e, k, 1), np.nan, np.float32),
        steps=np.full((e, k, 1), -1, np.float32),
        lengths=np.ones((e, k), np.int32),
        ids=np.arange(e, dtype=np.int32),
        source=np.zeros(e, np.int32),
        reference_logp=np.full((e, k), np.nan, np.float32),
    )
    fields = {n: np.asarray(v, getattr(labels, n).dtype) for n, v in fields.items()}
    return jax.tree.map(jnp.asarray, labels._replace(**fields))


def call(fn, scores, labels, **knobs):
    """The loss of each example, with float32 knobs as the train state holds them."""
    hparams = knobs_of(fn, **knobs)
    out = RewardOutput(jnp.asarray(scores, jnp.float32), {}, None)
    return fn(out, labels, hparams, KEY)


def grad(fn, scores, labels, **knobs):
    """Gradient of the sum of the examples' losses by the scores."""
    total = lambda s: jnp.sum(call(fn, s, labels, **knobs))
    return jax.grad(total)(jnp.asarray(scores, jnp.float32))


def knobs_of(fn, **knobs):
    """The knobs of a loss, defaults filled in."""
    from rm_jax.losses import knobs as module

    return module.read_knobs(module.knob_class(fn, "test"), knobs, "test")
