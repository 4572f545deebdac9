"""Reads a run directory; whatever is not there yet is empty.

>>> run = load_run("runs/quickstart")  # doctest: +SKIP
>>> steps, nll = run.series("train/nll")  # doctest: +SKIP
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from rm_jax import schemas, store

_SIGNS = ("config.json", "metrics.jsonl", "evals.json")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory, read once; predictions are read when asked for.

    Attributes:
      path: the directory.
      config, contract, arch, info: config.json, contract.json, arch.json, run.json.
      metrics: lines of metrics.jsonl, {"step": n, name: number}.
      timing: lines of timing.jsonl.
      events: lines of events.jsonl, {"step": n, "event": name, ...}.
      evals: eval name -> {metric: value}, the "sets" of evals.json.
      eval_step: the step they are of, None when evals.json does not say.
      prediction_names: eval names with a table of predictions.
    """

    path: str
    config: Mapping[str, Any]
    contract: Mapping[str, Any]
    arch: Mapping[str, Any]
    info: Mapping[str, Any]
    metrics: tuple[Mapping[str, Any], ...]
    timing: tuple[Mapping[str, Any], ...]
    events: tuple[Mapping[str, Any], ...]
    evals: Mapping[str, Mapping[str, Any]]
    eval_step: int | None
    prediction_names: tuple[str, ...]

    def names(self) -> list[str]:
        """Names of the metrics that were logged, sorted."""
        return sorted({name for line in self.metrics for name in line} - {"step"})

    def sources(self) -> dict[str, tuple[str, ...]]:
        """Set -> the sources of its mixture, () of none; by run.json."""
        sets = self.info.get("data") or {}
        own = {name: data.get("fingerprints") or {} for name, data in sets.items()}
        return {name: tuple(filter(None, prints)) for name, prints in own.items()}

    def series(self, name: str) -> tuple[Int[np.ndarray, "n"], Float[np.ndarray, "n"]]:
        """Steps and values of one metric, in the order of the lines."""
        lines = [line for line in self.metrics if name in line]
        steps = np.array([line["step"] for line in lines], np.int64)
        return steps, np.array([line[name] for line in lines], np.float64)

    def predictions(self, name: str) -> pa.Table:
        """One row a response, as `rm_jax.evals.to_arrow` writes it.

        Raises:
          ValueError: no such table; lists those that are there.
        """
        if name not in self.prediction_names:
            known = list(self.prediction_names)
            raise ValueError(f"{self.path}: no predictions {name!r}; known: {known}")
        path = store.join(self.path, "predictions", f"{name}.parquet")
        table = pq.read_table(pa.BufferReader(store.read_bytes(path)))
        found = (table.schema.metadata or {}).get(schemas.KEY.encode(), b"").decode()
        version = int(found) if found.isdecimal() else None
        if why := schemas.problem("predictions", version):
            raise schemas.SchemaError(f"{path}: {why}")
        return table


def load_run(path: str) -> Run:
    """Reads a run directory, or the directory of an evaluation.

    A half-written last line of a run that is still going is left out.

    Raises:
      ValueError: `path` holds none of a run's files, a damaged one, or one of a newer
        rm_jax.
    """
    path = str(path)
    if not any(store.exists(store.join(path, name)) for name in _SIGNS):
        sweep = store.exists(store.join(path, "sweep.json"))
        instead = ", but that of a sweep: say --root" if sweep else ""
        raise ValueError(
            f"{path!r} is not a run directory: it has none of {_SIGNS}{instead}"
        )
    folder = store.join(path, "predictions")
    files = store.listdir(folder) if store.exists(folder) else []
    ending = ".parquet"
    evals = unquote(read_json(path, "evals.json"))
    if evals and "sets" not in evals:
        raise ValueError(f"{path}/evals.json has no 'sets'; it has {sorted(evals)}")
    info = read_json(path, "run.json")
    schemas.check_lines(info, path)
    return Run(
        path=path,
        config=read_json(path, "config.json"),
        contract=read_json(path, "contract.json"),
        arch=read_json(path, "arch.json"),
        info=info,
        metrics=tuple(map(unquote, read_lines(path, "metrics.jsonl"))),
        timing=tuple(map(unquote, read_lines(path, "timing.jsonl"))),
        events=tuple(read_lines(path, "events.jsonl")),
        evals=evals.get("sets", {}),
        eval_step=evals.get("step"),
        prediction_names=tuple(
            f.removesuffix(ending) for f in sorted(files) if f.endswith(ending)
        ),
    )


def floats(table: pa.Table, name: str) -> Float[np.ndarray, "n"]:
    """A column of predictions as float64; NaN where it has no value."""
    return table[name].cast(pa.float64()).fill_null(np.nan).to_numpy()


class Pairs(NamedTuple):
    """Rows of a prediction table that were compared, and how much each pair counts."""

    chosen: Int[np.ndarray, "p"]
    rejected: Int[np.ndarray, "p"]
    weight: Float[np.ndarray, "p"]


def find_pairs(table: pa.Table) -> Pairs:
    """Every pair of responses to an example that its ranks, or else soft label, order.

    A pair weighs (weight of its example) / (pairs of its example): a prompt with many
    responses counts as much as one with two. Examples of weight 0 have no pairs.

    Args:
      table: predictions, one row a response, responses of an example in any order.
    """
    example, rank = table["example"].to_numpy(), _ranks(table)
    weight = floats(table, "weight")
    order = np.argsort(example, kind="stable")
    chosen, rejected = [order[:0]], [order[:0]]
    # Rows d apart in an example, for every d: one numpy pass each.
    for d in range(1, int(np.bincount(example).max(initial=0))):
        a, b = order[:-d], order[d:]
        pair = (example[a] == example[b]) & (rank[a] != rank[b])
        pair &= (rank[a] >= 0) & (rank[b] >= 0) & (weight[a] > 0)
        a, b = a[pair], b[pair]
        first = rank[a] < rank[b]
        chosen.append(np.where(first, a, b))
        rejected.append(np.where(first, b, a))
    w, l = np.concatenate(chosen), np.concatenate(rejected)
    count = np.bincount(example[w])
    return Pairs(w, l, weight[w] / count[example[w]])


class Mistake(NamedTuple):
    """A pair that the model orders the wrong way; two of each: chosen, rejected."""

    id: str
    margin: float
    prompt: str
    texts: tuple[str, str]
    scores: tuple[float, float]
    lengths: tuple[int, int]
    golds: tuple[float | None, float | None]
    strength: float | None


def worst_mistakes(table: pa.Table, limit: int = 10) -> list[Mistake]:
    """The pairs with the most negative margin, at most one an example, worst first."""
    pairs = find_pairs(table)
    score, example = floats(table, "score"), table["example"].to_numpy()
    margin = score[pairs.chosen] - score[pairs.rejected]
    found: dict[int, Mistake] = {}
    for i in np.argsort(margin, kind="stable"):
        if len(found) == limit or not margin[i] < 0:
            break
        key = int(example[pairs.chosen[i]])
        if key not in found:
            rows = table.take([pairs.chosen[i], pairs.rejected[i]]).to_pydict()
            found[key] = Mistake(
                id=rows["id"][0],
                margin=float(margin[i]),
                prompt=rows["prompt_text"][0],
                texts=tuple(rows["response_text"]),
                scores=tuple(rows["score"]),
                lengths=tuple(rows["length"]),
                golds=tuple(rows["gold"]),
                strength=rows["strength"][0],
            )
    return list(found.values())


def _ranks(table: pa.Table) -> Int[np.ndarray, "n"]:
    """Ranks, from the soft label where an example has none; -1 where unranked."""
    rank = table["rank"].fill_null(-1).to_numpy().copy()
    soft, response = floats(table, "soft"), table["response"].to_numpy()
    example = table["example"].to_numpy()
    ranked = np.bincount(example, rank >= 0) > 0
    first = np.where(response == 0, soft < 0.5, soft > 0.5)
    use = ~ranked[example] & np.isfinite(soft)
    rank[use] = first[use]
    return rank


def read_json(path: str, name: str) -> Mapping[str, Any]:
    """A JSON file of a run, {} where there is none."""
    file = store.join(path, name)
    if not store.exists(file):
        return {}
    return schemas.checked(name, store.read_json(file), file)


def read_lines(path: str, name: str) -> list[dict[str, Any]]:
    """Lines of a file of a run, none where there is no file; a torn last one is not.

    Raises:
      ValueError: a line that is no object with a step; names it.
    """
    file = store.join(path, name)
    text = store.read_text(file) if store.exists(file) else ""
    out = []
    for i, line in enumerate(text.split("\n")[:-1]):
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}:{i + 1}: not JSON: {error}") from None
        if not isinstance(value, dict) or type(value.get("step")) is not int:
            raise ValueError(f"{file}:{i + 1}: not an object with a step: {line:.80}")
        out.append(value)
    return out


def unquote(value: Any) -> Any:
    """The writer's "NaN", "Infinity" and "-Infinity" as the floats they stand for."""
    if isinstance(value, Mapping):
        return {k: unquote(v) for k, v in value.items()}
    if isinstance(value, list):
        return [unquote(v) for v in value]
    return float(value) if value in ("NaN", "Infinity", "-Infinity") else value
