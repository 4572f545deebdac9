"""The root of a sweep: its units, how far they are, their figures, while they run too.

>>> root = load_root("runs/losses")  # doctest: +SKIP
>>> figures(root)[["unit", "loss.name", "init_seed", "test/accuracy"]]  # doctest: +SKIP
         unit loss.name  init_seed  test/accuracy
0  3f0c9a1b22        bt          0          0.712

ROOT/sweep.json says what the sweep is; ROOT/units/NAME/ is a run directory, unit.json
in it the resolved config, evals/NAME.json a benchmark that was added later.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from rm_jax import schemas, store
from rm_jax.config import parse_duration
from rm_jax.report import runs

SWEEP, UNIT, EVALS = "sweep.json", "unit.json", "evals.json"
FAILED = "failed.json"
TABLE = "table.parquet"


class Unit(NamedTuple):
    """One unit of a sweep.

    Attributes:
      name: of its folder.
      path: a run directory, which may not be there yet.
      null: whether it is of the world in which the claims are false.
      keys: the seeds, and every key that the sweep changes -> its value in this unit;
        None of a key that its config does not have. A list is its JSON; the run of
        another unit is "after" what that one changes.
      needs: names of the units that are finished before it starts.
    """

    name: str
    path: str
    null: bool
    keys: dict[str, Any]
    needs: tuple[str, ...]


class Root(NamedTuple):
    """What ROOT/sweep.json says.

    Attributes:
      path: the root.
      question: that the experiment asks.
      experiment: the file of it.
      seeds: keys that are repetitions; the others are the condition.
      expected: the numbers of the paper, with their source.
      units: in the order of the sweep.
      claims: of its rules: {"name", "claim", "source"}.
    """

    path: str
    question: str
    experiment: str
    seeds: tuple[str, ...]
    expected: dict[str, Any]
    units: tuple[Unit, ...]
    claims: tuple[dict[str, str], ...] = ()

    @property
    def conditions(self) -> tuple[str, ...]:
        """Keys that are not repetitions."""
        keys = self.units[0].keys if self.units else {}
        return tuple(key for key in keys if key not in self.seeds)


def load_root(path: str) -> Root:
    """Reads ROOT/sweep.json and the unit.json of each unit that has one.

    Raises:
      ValueError: no sweep, a damaged file, or one of a newer rm_jax.
    """
    file = store.join(path, SWEEP)
    if not store.exists(file):
        raise ValueError(
            f"{path!r} holds no sweep: it has no {SWEEP}; give the --root of "
            "`rm-jax sweep`"
        )
    sweep = schemas.checked(SWEEP, store.read_json(file), file)
    changed = (key for unit in sweep["units"] for key in unit["changes"])
    keys = list(dict.fromkeys([*changed, *sweep["seeds"]]))
    return Root(
        path=str(path),
        question=sweep["question"],
        experiment=sweep["experiment"],
        seeds=tuple(sweep["seeds"]),
        expected=sweep["expected"],
        units=tuple(_unit(path, unit, keys) for unit in sweep["units"]),
        claims=tuple(sweep.get("claims", ())),
    )


def evaluations(unit: Unit) -> dict[str, dict[str, Any]]:
    """Set -> figures of a finished unit, those that were added later behind the rest.

    Empty of a unit that is not finished.
    """
    path = store.join(unit.path, EVALS)
    if not store.exists(path):
        return {}
    sets = dict(_evals(path))
    for name in added(unit):
        sets |= _evals(store.join(unit.path, "evals", f"{name}.json"))
    return sets


def added(unit: Unit) -> list[str]:
    """Names of the benchmarks that `rm-jax eval --root` added to a unit."""
    folder = store.join(unit.path, "evals")
    files = store.listdir(folder) if store.exists(folder) else []
    return [file.removesuffix(".json") for file in files if file.endswith(".json")]


def figures(root: Root) -> Any:
    """The final figures as a DataFrame, one row a finished unit.

    Columns: "unit", "null", every seed and every key that the sweep changes by its
    dotted name, every number of evals.json as "SET/metric", e.g. "test/accuracy".

    Raises:
      ImportError: no pandas; names the extra.
    """
    found = ((unit, evaluations(unit)) for unit in root.units)
    return _frame(root, [(unit, flat_figures(sets)) for unit, sets in found if sets])


def figures_by_step(root: Root) -> Any:
    """What every unit logged of its evaluations so far, one row a unit and step.

    The columns of `figures` and "step"; of the first config.train.eval_examples of
    each set.
    """
    rows = []
    for unit in root.units:
        for step, values in logged(unit):
            rows.append((unit, {"step": step, **values}))
    return _frame(root, rows, "step")


def flat_figures(sets: Mapping[str, Any]) -> dict[str, float]:
    """Nested figures as "SET/metric" -> number; lists and texts are left out."""
    out: dict[str, float] = {}
    for name, value in sets.items():
        if isinstance(value, Mapping):
            inner = flat_figures(value).items()
            out |= {f"{name}/{key}": number for key, number in inner}
        elif isinstance(value, int | float) and not isinstance(value, bool):
            out[name] = float(value)
    return out


def logged(unit: Unit) -> Iterator[tuple[int, dict[str, float]]]:
    """(step, {"SET/metric": value}) of each evaluation in metrics.jsonl."""
    for line in map(runs.unquote, runs.read_lines(unit.path, "metrics.jsonl")):
        start = "eval/"
        values = {k[len(start) :]: v for k, v in line.items() if k.startswith(start)}
        if values:
            yield line["step"], values


def progress(root: Root) -> Any:
    """How far the units are, as a DataFrame, one row a unit.

    Columns: unit, null, the keys, status (finished, running, failed or not started),
    step, of (steps in all; None where that is not known yet), seconds (of training),
    skips (of updates), alarms, why (it failed, or has not started; "" otherwise).

    "running" is a unit that has begun: one whose process was killed reads the same.
    """
    rows = [(unit, _progress(unit)) for unit in root.units]
    status = {unit.name: row["status"] for unit, row in rows}
    needs = {unit.name: unit.needs for unit in root.units}
    for unit, row in rows:
        if row["status"] == "not started":
            row["why"] = _waits(unit.name, needs, status)
    return _frame(
        root, rows, "status", "step", "of", "seconds", "skips", "alarms", "why"
    )


def write_parquet(root: Root) -> str:
    """Writes ROOT/table.parquet, one row a figure, and returns its path.

    Columns: unit, null, the keys, step, metric, value. The final figures have the last
    step of the unit and their name, "test/accuracy"; those that were logged on the way,
    of fewer examples, the name they have in metrics.jsonl, "eval/test/accuracy".
    """
    rows: dict[str, list[Any]] = {name: [] for name in _heads(root)}
    rows |= {"step": [], "metric": [], "value": []}
    for unit in root.units:
        lines = [(s, {f"eval/{k}": x for k, x in v.items()}) for s, v in logged(unit)]
        if sets := evaluations(unit):
            lines.append((_final_step(unit), flat_figures(sets)))
        for step, values in lines:
            for metric, value in values.items():
                row = _head(unit) | {"step": step, "metric": metric, "value": value}
                for name, cell in row.items():
                    rows[name].append(cell)
    types = {"null": pa.bool_(), "step": pa.int64(), "value": pa.float64()}
    columns = {k: _column(v, types.get(k)) for k, v in rows.items()}
    version = schemas.VERSIONS["table"]
    table = pa.table(columns).replace_schema_metadata({schemas.KEY: str(version)})
    path, file = store.join(root.path, TABLE), pa.BufferOutputStream()
    pq.write_table(table, file)
    store.write_bytes(path, file.getvalue().to_pybytes())
    return path


def pandas() -> Any:
    """The package.

    Raises:
      ImportError: it is not installed; names the extra.
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError(
            "tables of a sweep need pandas: pip install 'rm_jax[report]'"
        ) from error
    return pandas


def _unit(root: str, unit: Mapping[str, Any], keys: list[str]) -> Unit:
    path = store.join(root, "units", unit["name"])
    file = store.join(path, UNIT)
    config = store.read_json(file) if store.exists(file) else {}
    values, after = {}, unit.get("after", {})
    for key in keys:
        value: Any = config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is None or key in after:
            value = unit["changes"].get(key)
        nested = isinstance(value, Mapping | list)
        values[key] = json.dumps(value, sort_keys=True) if nested else value
    needs = dict.fromkeys(name for names in after.values() for name in names)
    return Unit(unit["name"], path, bool(unit["null"]), values, tuple(needs))


def _evals(path: str) -> dict[str, dict[str, Any]]:
    value = schemas.checked(EVALS, store.read_json(path), path)
    return runs.unquote(value["sets"])


def _final_step(unit: Unit) -> int:
    return store.read_json(store.join(unit.path, EVALS))["step"]


def _progress(unit: Unit) -> dict[str, Any]:
    info = runs.read_json(unit.path, "run.json")
    lines = runs.read_lines(unit.path, "metrics.jsonl")
    timing = runs.read_lines(unit.path, "timing.jsonl")
    events = runs.read_lines(unit.path, "events.jsonl")
    has = lambda name: store.exists(store.join(unit.path, name))
    if has(EVALS):
        status = "finished"
    elif has(FAILED):
        status = "failed"
    else:
        status = "running" if lines or has("config.json") else "not started"
    skips = [line["train/skips"] for line in lines if "train/skips" in line]
    return {
        "status": status,
        "step": max((line["step"] for line in lines), default=0),
        "of": _total(unit, info),
        "seconds": sum(line.get("seconds", 0.0) for line in timing),
        "skips": int(skips[-1]) if skips else 0,
        "alarms": sum(event["event"] == "alarm" for event in events),
        "why": _why(unit) if status == "failed" else "",
    }


def _waits(
    name: str, needs: Mapping[str, Sequence[str]], status: Mapping[str, str]
) -> str:
    """Why a unit has not started: a unit that failed, at any distance, or the next."""
    around = list(needs[name])
    for need in around:  # grows
        if status[need] == "failed":
            return f"needs {need}, which failed"
        around += needs[need] if status[need] == "not started" else ()
    left = [need for need in needs[name] if status[need] != "finished"]
    return f"after {left[0]}" if left else ""


def _why(unit: Unit) -> str:
    """Of a unit that was given up: the error, and where its log is."""
    path = store.join(unit.path, FAILED)
    found = schemas.checked(FAILED, store.read_json(path), path)
    return f"{found['error']}; log: {found['log']}"


def _total(unit: Unit, info: Mapping[str, Any]) -> int | None:
    """Steps of a run in all; None before it has counted its examples."""
    config = runs.read_json(unit.path, "config.json")
    if not config or "train" not in info.get("data", {}):
        return None
    duration = parse_duration(config["train"]["duration"])
    return duration.steps(
        config["batch"]["examples"], info["data"]["train"]["examples"]
    )


def _heads(root: Root) -> list[str]:
    return ["unit", "null", *root.conditions, *root.seeds]


def _head(unit: Unit) -> dict[str, Any]:
    return {"unit": unit.name, "null": unit.null, **unit.keys}


def _frame(
    root: Root, rows: list[tuple[Unit, Mapping[str, Any]]], *columns: str
) -> Any:
    """Rows under the heads, these columns, and whatever else they have."""
    values = (name for _, row in rows for name in row)
    names = dict.fromkeys([*_heads(root), *columns, *values])
    whole = [{**_head(unit), **row} for unit, row in rows]
    return pandas().DataFrame(whole, columns=list(names))


def _column(values: list[Any], kind: Any) -> Any:
    """An arrow column; of values of several types their text."""
    try:
        return pa.array(values, kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([v if v is None else str(v) for v in values])
