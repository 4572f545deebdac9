"""`rm-jax eval --root`: benchmarks added to every finished unit of a sweep.

ROOT/units/NAME/evals/SET.json is like evals.json, of one set, with the fingerprint of
its data; predictions go to the unit's predictions/. Each is written whole or not at
all, so a second start goes on where the first was killed.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rm_jax import compiles, provenance, schemas, store
from rm_jax import config as config_module
from rm_jax.data import datasets
from rm_jax.data.formats import find_format
from rm_jax.data.mixture import world_of
from rm_jax.data.sources import Source, parse_spec
from rm_jax.evals.run import evaluate_set, summary_lines
from rm_jax.report.root import EVALS, Unit, load_root
from rm_jax.serve.scorer import Scorer, load
from rm_jax.writer import to_json

_NAME = re.compile(r"\w[\w-]*")


def evaluate_root(
    path: str,
    suite: Mapping[str, str],
    columns: Mapping[str, str] | None = None,
    limit: int = 0,
    say: Callable[[str], None] = print,
    reducer: str | None = None,
    step: int | str | None = None,
) -> None:
    """Evaluates a checkpoint of every finished unit on each set that it lacks.

    Args:
      path: the root of a sweep.
      suite: name -> SPEC.
      columns: field -> column, for `columns:` and `hf:`.
      limit: first N records; 0 is all.
      say: prints a line.
      reducer: of members, see `Scorer`.
      step: of the checkpoints, or "best"; default the last sound ones.

    Raises:
      ValueError: no sweep, no finished unit, a name that cannot be one or is a set of
        the units, or other data, another reducer or step under a name that is there.
      RuntimeError: units that could not be evaluated, named; the others were.
    """
    for name, spec in suite.items():
        if not _NAME.fullmatch(name):
            raise ValueError(f"--name {name!r}: want letters, digits, _ and -")
        if columns:
            find_format(parse_spec(spec).format, columns)
    units = load_root(path).units
    finished = [unit for unit in units if store.exists(store.join(unit.path, EVALS))]
    if not finished:
        raise ValueError(f"{path}: none of its {len(units)} units is finished")
    asked = {"reducer": reducer, "step": step}
    asked = {key: value for key, value in asked.items() if value is not None}
    failed: list[str] = []
    seen: dict[str, set[str]] = {name: set() for name in suite}
    for n, unit in enumerate(finished, 1):
        say(f"unit {unit.name}, {n} of {len(finished)}")
        try:
            for name, mark in _evaluate(unit, suite, columns, limit, say, asked):
                seen[name].add(mark)
        except (OSError, ValueError) as error:
            say(f"  FAILED: {error}")
            failed.append(f"{unit.name}: {error}")
    for name, marks in seen.items():
        if len(marks) > 1:
            say(
                f"WARNING {name}: {suite[name]} is {len(marks)} different sets in "
                f"these {len(finished)} units, as a SPEC is that takes knobs from a "
                "unit's config.data: differences between them are of the sets, too"
            )
    if rest := len(units) - len(finished):
        say(f"{rest} units are not finished: give the same command again after them")
    if failed:
        raise RuntimeError(
            f"{len(failed)} of {len(finished)} units could not be evaluated, the "
            f"others were: {'; '.join(failed)}"
        )


def _evaluate(
    unit: Unit,
    suite: Mapping[str, str],
    columns: Mapping[str, str] | None,
    limit: int,
    say: Callable[[str], None],
    asked: Mapping[str, Any],
) -> Iterator[tuple[str, str]]:
    """Evaluates one unit; its model is loaded, as asked, where a set is missing.

    Yields:
      each set's name and fingerprint.
    """
    config = config_module.validate(config_module.load(unit.path))
    data = config.data.to_dict()
    own = store.read_json(store.join(unit.path, EVALS))["sets"]
    model: Scorer | None = None
    for name, spec in suite.items():
        if name in own:
            raise ValueError(f"{name!r} is a set of the unit: choose another name")
        source = datasets.open_source(spec, data, limit, columns)
        if _is_there(_file(unit, name), source.fingerprint, asked):
            say(f"  {name}: there already")
            yield name, source.fingerprint
            continue
        if model is None:
            compiles.use_cache(config.train.compile_cache)
            model = load(unit.path, **asked)
        values = _add(model, unit, name, spec, source, asked)
        for line in summary_lines({name: values}):
            say(f"  {line}")
        yield name, source.fingerprint


def _add(
    model: Scorer,
    unit: Unit,
    name: str,
    spec: str,
    source: Source,
    asked: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes the predictions and the figures of one set, and gives the figures."""
    data, quiet = model.config.data.to_dict(), lambda line: None
    tokens = datasets.token_set(
        name, source, data, model.contract, model.tokenizer, quiet
    )
    values = evaluate_set(
        name,
        world_of({"": spec}, data["world"]),
        model.score_chunk,
        model.loader(tokens),
        model.encoder(),
        unit.path,
        model.config.eval_seed,
        model.contract.temperature,
        reducer=model.reducer,
    )
    done = {
        "step": model.step,
        "sets": {name: values},
        "asked": asked,
        "spec": spec,
        "fingerprint": source.fingerprint,
        "data": provenance.sets_record({name: tokens}),
    }
    store.makedirs(store.join(unit.path, "evals"))
    store.write_sealed(_file(unit, name), to_json(schemas.stamped("evals.json", done)))
    return values


def _is_there(path: str, fingerprint: str, asked: Mapping[str, Any]) -> bool:
    """Whether this set was evaluated before.

    Raises:
      ValueError: other data was, or by another reducer or step, under the same name.
    """
    if not store.exists(path):
        return False
    found = schemas.checked("evals.json", store.read_json(path), path)
    if found["fingerprint"] != fingerprint:
        raise ValueError(
            f"{path} is of other data, {found['spec']}: choose another name, or delete "
            "that file"
        )
    if (before := found.get("asked", {})) != asked:
        flags = lambda of: " ".join(f"--{k} {v}" for k, v in of.items()) or "no flags"
        raise ValueError(
            f"{path} was made with {flags(before)}, now there are {flags(asked)}: "
            "choose another name, or delete that file"
        )
    return True


def _file(unit: Unit, name: str) -> str:
    return store.join(unit.path, "evals", f"{name}.json")
