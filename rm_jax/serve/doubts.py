"""How sure a single model is: `rm-jax eval --uncertainty laplace | dropout:16`."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from rm_jax import doubt, laplace, models, sharding, store
from rm_jax.data import datasets
from rm_jax.data.loader import Loader, StepBatch
from rm_jax.data.relabel import of_config
from rm_jax.data.training import relabelled
from rm_jax.evals.score import ScoreFn
from rm_jax.losses.pairwise import pairs
from rm_jax.serve.scorer import Scorer
from rm_jax.types import RewardOutput

KINDS = ("laplace", "laplace:EXAMPLES", "dropout:SAMPLES")


class Choice(NamedTuple):
    """What was asked for: "laplace", "dropout" or ""; its number, 0 if not given."""

    kind: str
    n: int


class Ways(NamedTuple):
    """How a set is scored.

    Attributes:
      score: the model, with an axis of members where there are any.
      steady: the model without chance, where `score` draws at random.
      covariance: of the scores of a set's examples, by a posterior.
      figures: of the uncertainty itself, for evals.json.
    """

    score: ScoreFn
    steady: ScoreFn | None = None
    covariance: Callable[[Loader], Float[np.ndarray, "n k k"]] | None = None
    figures: dict[str, float] = {}


def parse(text: str) -> Choice:
    """Reads "", "laplace", "laplace:2000" or "dropout:16".

    Raises:
      ValueError: it is anything else; lists what it may be.
    """
    if not text:
        return Choice("", 0)
    kind, colon, number = text.partition(":")
    n = int(number) if number.isdecimal() and len(number) < 10 else 0
    least = 2 if kind == "dropout" else 1
    if kind not in ("laplace", "dropout") or (n < least and (colon or least > 1)):
        raise ValueError(
            f"--uncertainty {text!r:.80}: known: {', '.join(KINDS)}; SAMPLES is 2 or "
            "more, EXAMPLES of the training set 1 or more"
        )
    return Choice(kind, n)


def check(model: Scorer, asked: Choice) -> None:
    """Refuses what the model cannot do, before any work.

    Raises:
      ValueError: the model has members, no dropout, or no last layer that is known.
    """
    if asked.kind and model.members:
        raise ValueError(
            f"--uncertainty {asked.kind}: {model.run} has {model.members.count} "
            "members, which say how sure they are without it: leave it out"
        )
    knobs = dict(model.arch.head_knobs)
    drops = model.arch.drops or knobs.get("dropout")
    if asked.kind == "dropout" and not drops:
        raise ValueError(
            f"--uncertainty dropout: {model.run} was trained without any dropout, so "
            "there is nothing to draw: set config.model.dropout, or use laplace"
        )
    if asked.kind == "laplace" and model.arch.head not in laplace.LAST:
        raise ValueError(
            f"--uncertainty laplace: the score of head {model.arch.head!r} is not "
            f"linear in one layer: known are {sorted(laplace.LAST)}; use dropout, or "
            "train members"
        )


def prepare(model: Scorer, asked: Choice, say: Callable[[str], None]) -> Ways:
    """How the model scores a set with the uncertainty asked for.

    Args:
      model: the model.
      asked: of `parse`.
      say: prints a line.

    Raises:
      ValueError: see `check`; or more training examples than there are.
    """
    check(model, asked)
    if asked.kind == "dropout":
        return Ways(_dropout(model, asked.n), steady=model.score_chunk)
    if asked.kind == "laplace":
        return _laplace(model, asked.n, say)
    return Ways(model.score_chunk)


def _dropout(model: Scorer, samples: int) -> ScoreFn:
    seed = model.config.dropout_seed
    program = doubt.make_dropout_score(*_parts(model), samples, seed)
    return lambda *chunk: np.asarray(program(model.params, *model.put(*chunk)))


def _laplace(model: Scorer, n: int, say: Callable[[str], None]) -> Ways:
    if model.config.loss.name not in ("bt", "bradley_terry"):
        say(
            f"WARNING {model.run} was trained with loss {model.config.loss.name}: the "
            "posterior is that of a Bradley-Terry model of these weights"
        )
    last = laplace.LAST[model.arch.head]
    program = doubt.make_features(*_parts(model), last)
    features = lambda *chunk: np.asarray(program(model.params, *model.put(*chunk)))
    weights = np.asarray(doubt.find(model.params["head"], last))
    batches, scale = _training(model, n, say)
    posterior = laplace.fit(_margins(batches, features, weights), weights, scale)
    say(
        f"laplace: prior precision {posterior.prior_precision:.3g}, of the largest "
        f"evidence: {posterior.log_evidence:.1f} nats"
    )
    return Ways(
        model.score_chunk,
        covariance=lambda loader: _covariance(loader, features, posterior),
        figures={
            "laplace/prior_precision": posterior.prior_precision,
            "laplace/log_evidence": posterior.log_evidence,
        },
    )


def _parts(model: Scorer) -> tuple[Callable, Any, Any]:
    """Model, mesh and shardings, for the programs of `doubt`."""
    _, apply = models.functions(model.arch)
    one = jax.tree.map(lambda _: sharding.replicated(model.mesh), model.params)
    return apply, model.mesh, one


def _training(
    model: Scorer, n: int, say: Callable[[str], None]
) -> tuple[Iterator[StepBatch], float]:
    """The first n examples in the order of training, and how many each stands for."""
    data = datasets.open_data(model.config, store.join(model.run, "tokenizer"), say)
    seed = model.config.data_seed
    order = datasets.train_order(model.config.data, data.train, seed)
    if n > order.epoch:
        raise ValueError(
            f"--uncertainty laplace:{n}: an epoch of the training set has "
            f"{order.epoch} examples: give fewer, or none for all of them"
        )
    chosen = order.items(0, n or order.epoch).tolist()
    say(f"laplace: features of {len(chosen)} training examples")
    batches, how = model.loader(data.train).chosen(chosen), of_config(model.config.data)
    seen = (relabelled(batch, how) for batch in batches)
    return seen, order.epoch / len(chosen)


def _margins(
    batches: Iterator[StepBatch], features: ScoreFn, weights: Float[np.ndarray, "d"]
) -> Iterator[laplace.Margins]:
    for batch in batches:
        for chunk, labels in batch.chunks:
            found = features(chunk, labels)
            scores = found @ weights
            p = pairs(RewardOutput(jnp.asarray(scores), {}, None), labels)
            compared = np.asarray(p.compared) & (labels.weight > 0)[:, None, None]
            e, i, j = np.nonzero(compared)
            yield laplace.Margins(
                found[e, i] - found[e, j],
                np.asarray(p.delta)[e, i, j].astype(np.float64),
                np.asarray(p.chance)[e, i, j].astype(np.float64),
                labels.weight[e] / compared.sum((1, 2))[e],
            )


def _covariance(
    loader: Loader, features: ScoreFn, posterior: laplace.Posterior
) -> Float[np.ndarray, "n k k"]:
    n, k = len(loader.data), loader.data.max_responses
    out = np.full((n, k, k), np.nan)
    for batch in loader.in_order():
        for chunk, labels in batch.chunks:
            real = labels.ids >= 0
            own = posterior.covariance(features(chunk, labels)[real])
            there = labels.present[real] > 0
            both = there[:, :, None] & there[:, None, :]
            out[labels.ids[real]] = np.where(both, own, np.nan)
    return out
