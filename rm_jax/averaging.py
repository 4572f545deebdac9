"""`rm-jax average`: one model whose weights are the mean of several models' (WARM).

Whether weights can be averaged is checked first, see connectivity.py. Adapters are
merged into the weights before: the mean of A B is not that of A times that of B.

Reference: Ramé 2024 (2401.12187).
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from rm_jax import config as config_module
from rm_jax import members, models, provenance, rundir, sharding, store
from rm_jax.checkpoint import CheckpointWriter
from rm_jax.connectivity import Connectivity, Model, combine, connectivity, table_lines
from rm_jax.data import datasets
from rm_jax.data.loader import Loader
from rm_jax.data.tokenizers import save_tokenizer
from rm_jax.evals.accuracy import accuracy
from rm_jax.evals.intervals import Sample
from rm_jax.evals.score import score_table
from rm_jax.evals.table import pairs
from rm_jax.models import lora
from rm_jax.serve.scorer import Scorer
from rm_jax.step import make_score

# Of arch.json: what models may differ in and have the same parameters.
MAY_DIFFER = ("dropout", "remat", "dtype", "head_init", "attention_block")

Params = Any


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
    continue it. The average is written where the check fails or is undecided, too, and
    the text says so.

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
    linear = scorers[0].arch.head == "linear"
    check = connectivity(found, _accuracy(scorers[0], loader), tolerance, linear)
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


def _accuracy(scorer: Scorer, loader: Loader) -> Callable[[Params], Sample]:
    _, apply = models.functions(lora.without(scorer.arch))
    shapes = next(models_of(scorer)).params
    one = jax.tree.map(lambda _: sharding.replicated(scorer.mesh), shapes)
    program = make_score(apply, scorer.mesh, one)

    def measure(params: Params) -> Sample:
        params = jax.device_put(params, one)
        score = lambda *chunk: np.asarray(program(params, *scorer.put(*chunk)))
        found = accuracy(pairs(score_table(score, loader)))
        if not len(found.values):
            raise ValueError("no pair of the data is ordered: nothing to measure on")
        return found

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
    config.model.arch = base.model.arch  # "init" would ask for it again
    config.model.features = 0
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
