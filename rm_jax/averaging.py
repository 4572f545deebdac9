"""`rm-jax average`: one model whose weights are the mean of several models' (WARM).

Weights can be averaged where the models are linearly connected: where no model on the
line between two of them is worse than the line between their accuracies,

    acc((1 - λ) a + λ b) >= (1 - λ) acc(a) + λ acc(b) - tolerance.

Models fine-tuned from the same pretraining usually are, others are not. Adapters are
merged into the weights first: the mean of A B is not that of A times that of B.

Reference: Ramé 2024 (2401.12187), Observation 1; Frankle 2020 (1912.05671).
"""

import itertools
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rm_jax import config as config_module
from rm_jax import members, models, provenance, rundir, sharding, store
from rm_jax.checkpoint import CheckpointWriter
from rm_jax.data import datasets
from rm_jax.data.loader import Loader
from rm_jax.data.tokenizers import save_tokenizer
from rm_jax.evals.accuracy import accuracy
from rm_jax.evals.score import score_table
from rm_jax.evals.table import pairs
from rm_jax.models import lora
from rm_jax.serve.scorer import Scorer
from rm_jax.step import make_score

LAMBDAS = (0.25, 0.5, 0.75)
# Of arch.json: what models may differ in and have the same parameters.
MAY_DIFFER = ("dropout", "remat", "dtype", "head_init", "attention_block")

Params = Any


class Model(NamedTuple):
    """One model to be averaged: "RUN", or "RUN member i"."""

    name: str
    params: Params


class Line(NamedTuple):
    """Accuracies along the line between two models.

    Attributes:
      a: name of the model at λ = 0.
      b: name of the model at λ = 1.
      accuracy: λ -> accuracy of (1 - λ) a + λ b.
    """

    a: str
    b: str
    accuracy: dict[float, float]

    def gap(self) -> float:
        """The least of acc(λ) minus the line between the ends; below 0 is a barrier."""
        ends = self.accuracy[0.0], self.accuracy[1.0]
        return min(self.accuracy[x] - (1 - x) * ends[0] - x * ends[1] for x in LAMBDAS)


class Connectivity(NamedTuple):
    """The check before an average.

    Attributes:
      lines: of each two models.
      average: accuracy of the mean of all weights.
      members: mean accuracy of the models.
      pairs: pairs of responses that an accuracy is of.
      tolerance: accuracy that may be lost.
    """

    lines: list[Line]
    average: float
    members: float
    pairs: int
    tolerance: float

    def broken(self) -> list[Line]:
        """The lines along which accuracy is lost."""
        return [line for line in self.lines if line.gap() < -self.tolerance]

    def holds(self) -> bool:
        """Whether no line is broken, and the average as good as its members."""
        return not self.broken() and self.average >= self.members - self.tolerance

    def to_json(self) -> dict[str, Any]:
        """What lmc.json says."""
        lines = [
            {
                "a": line.a,
                "b": line.b,
                "accuracy": {f"{x:g}": y for x, y in line.accuracy.items()},
                "gap": line.gap(),
                "holds": line.gap() >= -self.tolerance,
            }
            for line in self.lines
        ]
        return {**self._asdict(), "lines": lines, "holds": self.holds()}


def average_runs(
    runs: Sequence[str],
    to: str,
    data: str = "",
    step: int | str | None = None,
    columns: Mapping[str, str] | None = None,
    limit: int = 0,
    tolerance: float = 0.005,
) -> Connectivity:
    """Writes a run directory with the mean of the weights; prints and writes the check.

    It can be evaluated, scored with and named by config.model.init; `train` cannot
    continue it. The average is written where the check fails, too, with a warning.

    Args:
      runs: run directories; of one with members every member is a model.
      to: a new directory.
      data: SPEC that accuracy is measured on; default the first run's valid set.
      step: of the checkpoints, or "best"; default the last sound ones.
      columns: field -> column of `data`.
      limit: first N records of `data`; 0 is all.
      tolerance: accuracy that may be lost along a line.

    Raises:
      FileNotFoundError: no run directory, or no such step.
      ValueError: one model only, or models of other architectures, contracts or
        tokenizers: names what differs.
    """
    scorers = [Scorer(run, step) for run in runs]
    for other in scorers[1:]:
        check_same(scorers[0], other)
    found = [model for scorer in scorers for model in models_of(scorer)]
    if len(found) < 2:
        raise ValueError(
            f"{runs[0]} is one model: give several runs, or a run with members"
        )
    loader, spec = _loader(scorers[0], data, columns, limit)
    check = connectivity(found, _accuracy(scorers[0], loader), tolerance)
    for line in table_lines(check):
        print(line)
    mean = combine([model.params for model in found])
    _write(to, scorers, mean, check, spec)
    return check


def models_of(scorer: Scorer) -> Iterator[Model]:
    """The model of a run, or each of its members, adapters merged into the weights."""
    merged = lambda params: lora.merge(params, scorer.arch)[0]
    if scorer.members is None:
        yield Model(str(scorer), merged(scorer.params))
        return
    for i in range(scorer.members.count):
        own = members.take(scorer.params, scorer.members.share, i)
        yield Model(f"{scorer} member {i}", merged(own))


def check_same(a: Scorer, b: Scorer) -> None:
    """Refuses models whose weights do not mean the same.

    Raises:
      ValueError: naming the fields of arch.json and of contract.json that differ.
    """
    contract = lambda scorer: json.loads(scorer.contract.to_json())
    changed = [
        f"{kind}.{key}: {x!r:.60} and {y!r:.60}"
        for kind, one, two in (
            ("arch", _arch(a), _arch(b)),
            ("contract", contract(a), contract(b)),
        )
        for key in sorted(one.keys() | two.keys())
        if (x := one.get(key)) != (y := two.get(key))
    ]
    if changed:
        raise ValueError(
            f"{a.run} and {b.run} cannot be averaged, they differ in "
            f"{'; '.join(changed)}"
        )


def _arch(scorer: Scorer) -> dict[str, Any]:
    arch = lora.without(scorer.arch).to_json()
    arch = {k: v for k, v in arch.items() if k not in MAY_DIFFER}
    knobs = {k: v for k, v in arch["head_knobs"].items() if k != "dropout"}
    return arch | {"head_knobs": knobs}


def combine(params: Sequence[Params], weights: Sequence[float] | None = None) -> Params:
    """Σ weight · params, leaf by leaf in float64, in the leaves' own types.

    Args:
      params: trees of one structure.
      weights: that sum to 1; default equal ones.
    """
    share = np.full(len(params), 1 / len(params)) if weights is None else weights

    def leaf(*xs):
        total = sum(
            w * np.asarray(x, np.float64) for w, x in zip(share, xs, strict=True)
        )
        return jax.numpy.asarray(total.astype(xs[0].dtype))

    return jax.tree.map(leaf, *params)


def connectivity(
    found: Sequence[Model],
    measure: Callable[[Params], tuple[float, int]],
    tolerance: float,
) -> Connectivity:
    """Measures every model, the line between each two, and the mean of all.

    Args:
      found: the models.
      measure: parameters -> accuracy and the number of pairs it is of.
      tolerance: of the check.
    """
    alone = [measure(model.params) for model in found]
    lines = []
    for (a, (left, _)), (b, (right, _)) in itertools.combinations(
        zip(found, alone, strict=True), 2
    ):
        between = {
            x: measure(combine([a.params, b.params], [1 - x, x]))[0] for x in LAMBDAS
        }
        lines.append(Line(a.name, b.name, {0.0: left, **between, 1.0: right}))
    mean, n = measure(combine([model.params for model in found]))
    own = float(np.mean([value for value, _ in alone]))
    return Connectivity(lines, mean, own, n, tolerance)


def table_lines(check: Connectivity) -> Iterator[str]:
    """The check as text: one row a line between two models, then the average."""
    yield f"accuracy on {check.pairs} pairs, at λ on the line from a to b"
    yield f"{'λ =':>8} 0 {' '.join(f'{x:>8g}' for x in (*LAMBDAS, 1))}   least - line"
    for line in check.lines:
        values = " ".join(f"{y:8.4f}" for y in line.accuracy.values())
        said = "" if line.gap() >= -check.tolerance else "  BROKEN"
        yield f"  {values}   {line.gap():+.4f}{said}  a = {line.a}, b = {line.b}"
    yield (
        f"mean of all weights: accuracy {check.average:.4f}, its members "
        f"{check.members:.4f} on average"
    )
    if not check.holds():
        yield (
            f"WARNING linear mode connectivity does not hold within {check.tolerance}: "
            f"{len(check.broken())} of {len(check.lines)} lines lose accuracy. These "
            "weights do not average, as those of different pretrainings do not: train "
            "the models from one config.model.init, or use them as members"
        )


def _loader(
    scorer: Scorer, spec: str, columns: Mapping[str, str] | None, limit: int
) -> tuple[Loader, str]:
    data, say = scorer.config.data.to_dict(), _say
    if spec:
        source = datasets.open_source(spec, data, limit, columns)
        found = datasets.token_set(
            "check", source, data, scorer.contract, scorer.tokenizer, say
        )
        return scorer.loader(found), spec
    evals = scorer.config.data.eval
    if not evals:
        raise ValueError(f"{scorer.run} has no eval set to measure on: give --data")
    name = "valid" if "valid" in evals else next(iter(evals))
    kept = store.join(scorer.run, "tokenizer")
    found = datasets.open_data(scorer.config, kept, say).evals[name]
    return scorer.loader(found), f"{name} of {scorer.run}"


def _accuracy(scorer: Scorer, loader: Loader) -> Callable[[Params], tuple[float, int]]:
    _, apply = models.functions(lora.without(scorer.arch))
    shapes = next(models_of(scorer)).params
    one = jax.tree.map(lambda _: sharding.replicated(scorer.mesh), shapes)
    program = make_score(apply, scorer.mesh, one)

    def measure(params: Params) -> tuple[float, int]:
        params = jax.device_put(params, one)
        score = lambda *chunk: np.asarray(program(params, *scorer.put(*chunk)))
        found = accuracy(pairs(score_table(score, loader)))
        if not len(found.values):
            raise ValueError("no pair of the data is ordered: nothing to measure on")
        return found.mean(), len(found.values)

    return measure


def _write(
    to: str, scorers: Sequence[Scorer], params: Params, check: Connectivity, spec: str
) -> None:
    """A run directory with the average as its step 0."""
    first, at = scorers[0], lambda name: store.join(to, name)
    base = config_module.load("rm_jax:base")
    config = config_module.load(first.run)
    config.name = f"average of {len(scorers)} runs, first {config.name}"
    config.train.ema = 0.0  # the average is of what the runs are evaluated with
    # Nothing of it is drawn or adapted.
    config.model.init, config.model.head.init = "scratch", "normal"
    config.model.lora = base.model.lora
    config.members, config.mesh = base.members, base.mesh
    config = config_module.validate(config)
    text = rundir.config_text(config)
    store.makedirs(to)
    with store.new_folder(at("tokenizer")) as folder:
        save_tokenizer(first.tokenizer, folder)
    if store.exists(store.join(first.run, "plugins")):
        store.copy_tree(store.join(first.run, "plugins"), at("plugins"))
    store.write_sealed(at("contract.json"), json.loads(first.contract.to_json()))
    arch = lora.without(first.arch).to_json()
    store.write_sealed(at("arch.json"), arch)
    sources = [
        {
            "run": scorer.run,
            "step": scorer.step,
            "members": scorer.members.count if scorer.members else 1,
        }
        for scorer in scorers
    ]
    store.write_sealed(at("lmc.json"), {"data": spec, **check.to_json()})
    with CheckpointWriter(
        at("checkpoints"), keep_last=1, keep_best=0, best_metrics=(), best_mode="min"
    ) as checkpoints:
        meta = {
            "contract": first.contract.to_json(),
            "arch": arch,
            "members": None,
            "average_of": sources,
        }
        checkpoints.save(0, {"params": params}, meta, {})
    record = provenance.run_record(config, text, [], {"average_of": sources})
    store.write_sealed(at("run.json"), record)
    provenance.add_session(at("run.json"), 0, {})
    store.write_text(at("config.json"), text)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
