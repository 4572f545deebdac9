"""`rm-jax eval`: a trained model on a data set, into a directory of its own."""

import json
import re
import sys
from collections.abc import Mapping

from rm_jax import provenance, rundir, schemas, store
from rm_jax.data import datasets
from rm_jax.data.formats import find_format
from rm_jax.data.mixture import world_of
from rm_jax.data.sources import parse_spec
from rm_jax.evals.run import evaluate_set, summary_lines
from rm_jax.serve import doubts
from rm_jax.serve.scorer import load
from rm_jax.writer import to_json


def evaluate_run(
    run: str,
    spec: str,
    out: str,
    step: int | str | None = None,
    columns: Mapping[str, str] | None = None,
    limit: int = 0,
    reducer: str | None = None,
    uncertainty: str = "",
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
      reducer: of members, see `Scorer`.
      uncertainty: of a single model: "laplace[:EXAMPLES]", the posterior of the last
        layer on so many training examples, by default an epoch of them, or
        "dropout:SAMPLES", whose draws are members; "" is none.

    Raises:
      FileNotFoundError: no run directory, no such step, or no such data.
      ValueError: what is wrong with the columns, the checkpoint, the data, the reducer
        or the uncertainty.
    """
    if columns:
        find_format(parse_spec(spec).format, columns)
    asked = doubts.parse(uncertainty)
    if asked.kind == "laplace" and reducer is not None:
        raise ValueError(
            f"--reducer {reducer}: --uncertainty laplace gives a variance, and no "
            "members to reduce: leave one of the two out"
        )
    model = load(run, step, reducer)
    config = model.config
    data = config.data.to_dict()
    say = lambda line: print(line, file=sys.stderr, flush=True)
    say(f"model: {model}")
    doubts.check(model, asked)
    source = datasets.open_source(spec, data, limit, columns)
    name = re.sub(r"[^\w.-]+", "-", source.name)
    tokens = datasets.token_set(
        name, source, data, model.contract, model.tokenizer, say
    )
    ways = doubts.prepare(model, asked, say)
    values = evaluate_set(
        name,
        world_of({"": spec}, data["world"]),
        ways.score,
        model.loader(tokens),
        model.encoder(),
        out,
        config.eval_seed,
        model.contract.temperature,
        reducer=model.reducer,
        steady=ways.steady,
        covariance=ways.covariance,
    )
    values |= ways.figures
    more = {
        "reducer": model.reducer,
        "uncertainty": uncertainty,
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
