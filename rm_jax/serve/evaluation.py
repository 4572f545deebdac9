"""`rm-jax eval`: a trained model on a data set, into a directory of its own."""

import json
import re
import sys
from collections.abc import Mapping

from rm_jax import provenance, rundir, schemas, store
from rm_jax.data import datasets
from rm_jax.data.formats import find_format
from rm_jax.data.mixture import world_split
from rm_jax.data.sources import parse_spec
from rm_jax.evals.run import evaluate_set, summary_lines
from rm_jax.serve.scorer import load
from rm_jax.writer import to_json


def evaluate_run(
    run: str,
    spec: str,
    out: str,
    step: int | str | None = None,
    columns: Mapping[str, str] | None = None,
    limit: int = 0,
) -> dict[str, float]:
    """Evaluates the model of a run on a SPEC and prints the figures.

    Writes out/evals.json, out/predictions/, out/run.json and out/report.html.

    Args:
      run: the run directory.
      spec: the data.
      out: a new directory.
      step: of the checkpoint, or "best"; default the last sound one.
      columns: field -> column, for `columns:` and `hf:`.
      limit: first N records; 0 is all.

    Raises:
      FileNotFoundError: no run directory, no such step, or no such data.
      ValueError: what is wrong with the columns, the checkpoint or the data.
    """
    if columns:
        find_format(parse_spec(spec).format, columns)
    model = load(run, step)
    config = model.config
    data = config.data.to_dict()
    say = lambda line: print(line, file=sys.stderr, flush=True)
    say(f"model: {model}")
    source = datasets.open_source(spec, data, limit, columns)
    name = re.sub(r"[^\w.-]+", "-", source.name)
    tokens = datasets.token_set(
        name, source, data, model.contract, model.tokenizer, say
    )
    values = evaluate_set(
        name,
        world_split({"": spec}),
        model.score_chunk,
        model.loader(tokens),
        model.encoder(),
        data["world"],
        out,
        config.eval_seed,
        model.contract.temperature,
    )
    more = {
        "data": provenance.sets_record({name: tokens}),
        "evaluated": store.join(run, f"checkpoints/{model.step}"),
        "specs": {name: {"": spec}},
    }
    text, path = rundir.config_text(config), store.join(out, "run.json")
    store.write_sealed(path, provenance.run_record(config, text, [], more))
    provenance.add_session(path, model.step, {})
    store.write_text(store.join(out, "config.json"), text)
    contract = json.loads(model.contract.to_json())
    store.write_sealed(store.join(out, "contract.json"), contract)
    store.write_sealed(store.join(out, "arch.json"), model.arch.to_json())
    done = schemas.stamped("evals.json", {"step": model.step, "sets": {name: values}})
    store.write_sealed(store.join(out, "evals.json"), to_json(done))
    for line in summary_lines(done["sets"]):
        print(line)
    from rm_jax.report.html import write_report

    print(f"report: {write_report(out)}")
    return values
