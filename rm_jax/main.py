"""The command line: `rm-jax VERB`. Each verb imports what it needs when it runs."""

import argparse
import functools
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from rm_jax import arguments, store

USAGE = """\
rm-jax: train, evaluate and look into reward models.

  rm-jax train   --config FILE[:ARG] --workdir DIR [--config.KEY=VALUE ...]
  rm-jax sweep   --experiment FILE[:ARG] --root ROOT
  rm-jax eval    --checkpoint RUN --data SPEC --out DIR
  rm-jax eval    --root ROOT --data SPEC --name NAME
  rm-jax report  RUN, or --root ROOT
  rm-jax score   --checkpoint RUN --input X.jsonl --output Y.jsonl
  rm-jax average RUN RUN ... --to DIR
  rm-jax export  --checkpoint RUN --to DIR [--adapter]
  rm-jax verify  DIR --peer hf|vllm|URL
  rm-jax features --config FILE[:ARG] --layers A,B,...
  rm-jax inspect RUN --step N
  rm-jax diff    RUN_A RUN_B
  rm-jax data prepare   --data SPEC --out DIR
  rm-jax data tokenizer --data SPEC --vocab N --out DIR
  rm-jax data audit     --data SPEC
  rm-jax data presets

SPEC is format:path-or-hub-id[@revision][#split]; `rm-jax VERB --help` says more.
RM_JAX_TRACEBACK=1 in the environment shows where an error came from."""


def entry() -> None:
    """Runs `rm-jax`; an error is one line on stderr and exit code 1."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not os.environ.get("RM_JAX_TRACEBACK"):
        _quiet()
    words = sys.argv[1:]
    try:
        code = run(words)
    except KeyboardInterrupt:
        print("rm-jax: interrupted; a run goes on from its last save", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        code = 141
    except Exception as error:
        if os.environ.get("RM_JAX_TRACEBACK"):
            raise
        text = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, ValueError | OSError | RuntimeError | ImportError):
            text = f"{type(error).__name__}: {text} (RM_JAX_TRACEBACK=1 shows where)"
        print(f"rm-jax: {text}", file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.exit(code)


def console() -> None:
    """`entry` as a process, which an error or Ctrl-C ends at once.

    A save that failed leaves threads of Orbax that would wait for many minutes; one
    that was broken off leaves some that would complain.
    """
    try:
        entry()
    except SystemExit as done:
        if done.code not in (1, 130):
            raise
        sys.stderr.flush()
        os._exit(done.code)


def _quiet() -> None:
    """Leaves a file that cannot be read to our line: Orbax and gcsfs say 50 more.

    It goes on after the read has failed, and until the process ends.
    """
    from absl import logging as absl_logging

    absl_logging.set_verbosity(absl_logging.FATAL)
    for name in ("asyncio", "gcsfs"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* never awaited", RuntimeWarning)
    sys.unraisablehook = functools.partial(_unraisable, sys.unraisablehook)


def _unraisable(show: Callable[[Any], None], e: Any) -> None:
    """Shows what could not be raised, but for what broken-off reads leave behind."""
    code = getattr(e.object, "cr_code", None)  # of a coroutine that nobody awaits
    of_orbax = code is not None and "orbax" in code.co_filename
    if str(e.exc_value) != "Event loop is closed" and not of_orbax:
        show(e)


def run(words: Sequence[str]) -> int:
    """Runs a command line and returns its exit code.

    Args:
      words: the verb and what follows it.

    Raises:
      UsageError: they cannot be understood; other errors are those of the verb.
    """
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if words else 2
    verb, rest = words[0], list(words[1:])
    if verb == "data" and rest and not rest[0].startswith("-"):
        verb, rest = f"data {rest[0]}", rest[1:]
    if verb not in VERBS:
        raise arguments.UsageError(f"unknown command {verb!r}; known: {sorted(VERBS)}")
    return VERBS[verb](rest) or 0


def _train(words: list[str]) -> int:
    words, knobs = arguments.take_knobs(words)
    parser = arguments.parser(
        "train", "Train a model, or continue a run where it stopped."
    )
    parser.add_argument(
        "--config",
        type=arguments.path,
        required=True,
        help="FILE.py[:ARG], rm_jax:NAME or a config.json",
    )
    parser.add_argument(
        "--workdir", type=arguments.path, required=True, help="the run directory"
    )
    parser.add_argument("--coordinator", default="", help="HOST:PORT of process 0")
    parser.add_argument("--processes", type=arguments.count, default=0, help="of them")
    parser.add_argument(
        "--process", type=arguments.count, default=-1, help="this one, from 0"
    )
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="find the others: TPU pod, SLURM",
    )
    parser.add_argument(
        "--overfit-one-batch",
        action="store_true",
        help="the same examples in every step: the loss must go to 0",
    )
    parser.epilog = "--config.KEY=VALUE changes one knob of configs/base.py."
    args = parser.parse_args(words)
    from rm_jax import config as config_module

    config = config_module.load(args.config)
    from rm_jax import repeat

    said = repeat.pin(config, args.config, args.workdir)
    for key, value in knobs:
        config_module.override(config, key, value)
    if args.overfit_one_batch:
        config.train.overfit_one_batch = True
    from rm_jax import cluster
    from rm_jax.train import train

    cluster.join(args.coordinator, args.processes, args.process, args.distributed)
    for line in said if cluster.first() else ():
        print(line, file=sys.stderr)
    done = train(config, args.workdir)
    return 75 if done is None else 0  # EX_TEMPFAIL: stopped by a signal, run it again


def _sweep(words: list[str]) -> int:
    parser = arguments.parser(
        "sweep", "Train the units of an experiment, or continue, and judge its claims."
    )
    arguments.add_root(parser)
    arguments.add_sweep(parser)
    args = parser.parse_args(words)
    from rm_jax.launch.sweep import sweep

    return sweep(
        args.experiment,
        args.root,
        backend=args.backend,
        workers=args.workers,
        separate=args.separate,
        dry_run=args.dry_run,
        stream=sys.stdout,
    )


def _worker(words: list[str]) -> int:
    parser = arguments.parser("worker", "Train units of a sweep in one program.")
    arguments.add_root(parser)
    parser.add_argument(
        "--units", required=True, help="A,B,...: a group of ROOT/sweep.json"
    )
    args = parser.parse_args(words)
    from rm_jax.launch.worker import work

    return work(args.root, arguments.names(args.units), sys.stderr)


def _eval(words: list[str]) -> None:
    if any(word == "--root" or word.startswith("--root=") for word in words):
        return _eval_root(words)
    parser = arguments.parser("eval", "Evaluate a trained model on a data set.")
    parser.epilog = (
        "With --root, of every unit of a sweep: rm-jax eval --root R --help."
    )
    arguments.add_checkpoint(parser)
    _add_reducer(parser)
    parser.add_argument(
        "--uncertainty",
        default="",
        help="of a single model: laplace[:EXAMPLES] or dropout:SAMPLES",
    )
    arguments.add_data(parser)
    parser.add_argument(
        "--out",
        type=arguments.path,
        required=True,
        help="a new directory for the results",
    )
    parser.add_argument(
        "--limit", type=arguments.count, default=0, help="first N records; 0 is all"
    )
    args = parser.parse_args(words)
    arguments.check_new("--out", args.out)
    from rm_jax.serve.evaluation import evaluate_run

    evaluate_run(
        args.checkpoint,
        args.data,
        args.out,
        args.step,
        arguments.columns(args),
        args.limit,
        args.reducer,
        args.uncertainty,
    )


def _eval_root(words: list[str]) -> None:
    parser = arguments.parser("eval", "Add a benchmark to every unit of a sweep.")
    arguments.add_root(parser)
    arguments.add_suite(parser)
    _add_reducer(parser)
    arguments.add_step(parser)
    args = parser.parse_args(words)
    suite, columns = arguments.suite(args), arguments.columns(args)
    from rm_jax.serve.benchmark import evaluate_root

    evaluate_root(
        args.root,
        suite,
        columns,
        args.limit,
        reducer=args.reducer,
        step=args.step,
    )


def _report(words: list[str]) -> None:
    if not any(word == "--root" or word.startswith("--root=") for word in words):
        return _report_run(words)
    parser = arguments.parser("report", "Show what a sweep has found so far.")
    arguments.add_root(parser)
    arguments.add_report(parser)
    args = parser.parse_args(words)
    over, baseline = arguments.names(args.over), arguments.pairs(args.baseline)
    from rm_jax.report import root, sweep, sweep_html

    known = sweep.look(
        args.root, show=args.show, select=args.select, over=over, baseline=baseline
    )
    print("\n".join(sweep.text_lines(known, args.format)))
    if args.format != "text":  # tables alone, for a paper; what to know of them is here
        print("\n".join(sweep.notes(known)), file=sys.stderr)
    print(f"table: {root.write_parquet(known.root)}", file=sys.stderr)
    print(f"report: {sweep_html.write_page(known)}", file=sys.stderr)


def _report_run(words: list[str]) -> None:
    parser = arguments.parser("report", "Write the report.html of a run again.")
    parser.epilog = (
        "With --root, the tables, verdicts and page of a sweep: rm-jax report --root R "
        "--help."
    )
    parser.add_argument("run", type=arguments.path, help="a run directory")
    args = parser.parse_args(words)
    from rm_jax.report import write_report

    print(f"report: {write_report(args.run)}")


def _score(words: list[str]) -> None:
    parser = arguments.parser(
        "score", "Score the responses of records, one JSON object a line."
    )
    arguments.add_checkpoint(parser)
    _add_reducer(parser)
    parser.add_argument(
        "--input",
        type=arguments.path,
        required=True,
        help="lines {prompt, responses}, perhaps with an id; a response may be empty",
    )
    parser.add_argument(
        "--output",
        type=arguments.path,
        required=True,
        help="lines {id, scores}, and {members: scores of each} where there are any",
    )
    args = parser.parse_args(words)
    arguments.check_new("--output", args.output, folder=False)
    if not store.exists(args.input) or store.is_dir(args.input):
        raise arguments.UsageError(f"--input {args.input}: no such file")
    from rm_jax.serve.scoring import score_file

    score_file(args.checkpoint, args.input, args.output, args.step, args.reducer)


def _average(words: list[str]) -> None:
    parser = arguments.parser(
        "average", "Average the weights of runs, or of a run's members, into one model."
    )
    parser.add_argument("runs", type=arguments.path, nargs="+", metavar="RUN")
    parser.add_argument(
        "--to", type=arguments.path, required=True, help="a new run directory"
    )
    arguments.add_step(parser)
    arguments.add_data(parser, "default the first run's valid set", required=False)
    parser.add_argument(
        "--limit", type=arguments.count, default=0, help="first N records; 0 is all"
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.005,
        help="accuracy that may be lost between two of them; default 0.005",
    )
    args = parser.parse_args(words)
    if not 0 <= args.tolerance <= 1:
        raise arguments.UsageError(f"--tolerance {args.tolerance}: want 0 to 1")
    arguments.check_new("--to", args.to)
    from rm_jax.averaging import average_runs

    average_runs(
        args.runs,
        args.to,
        args.data,
        args.step,
        arguments.columns(args),
        args.limit,
        args.tolerance,
    )
    print(f"{args.to}: use it like a run, or as --config.model.init={args.to}")


def _export(words: list[str]) -> None:
    parser = arguments.parser(
        "export", "Write a run as a folder that transformers, TRL and vLLM load."
    )
    parser.add_argument(
        "--checkpoint", type=arguments.path, required=True, help="a run directory"
    )
    parser.add_argument("--to", type=arguments.path, required=True, help="a new folder")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "bf16"),
        default="float32",
        help="of the weights; default float32",
    )
    parser.add_argument(
        "--adapter",
        action="store_true",
        help="LoRA and head as a PEFT adapter of model.init's weights, not merged",
    )
    arguments.add_step(parser)
    args = parser.parse_args(words)
    arguments.check_new("--to", args.to)
    from rm_jax.export import export

    folders = export(
        args.checkpoint, args.to, args.dtype, args.step, as_adapter=args.adapter
    )
    for folder in folders:
        print(f"{folder}: python {store.join(folder, 'verify.py')} checks it")


def _verify(words: list[str]) -> int:
    parser = arguments.parser(
        "verify", "Whether another program scores an exported folder as it should."
    )
    parser.add_argument("folder", type=arguments.path, metavar="DIR")
    parser.add_argument(
        "--peer",
        default="hf",
        help="hf (transformers; the default), vllm, or the URL of a vLLM server",
    )
    parser.add_argument(
        "--atol",
        type=float,
        help="allowed difference; default 1e-4, of bfloat16 5 %% of the scores' spread",
    )
    args = parser.parse_args(words)
    from rm_jax.export.peers import verify

    verdict = verify(args.folder, args.peer, args.atol)
    print(verdict)
    return 0 if verdict.ok else 1


def _features(words: list[str]) -> None:
    words, knobs = arguments.take_knobs(words)
    parser = arguments.parser(
        "features", "Run a frozen trunk over the sets of a config, once for all heads."
    )
    parser.add_argument(
        "--config",
        type=arguments.path,
        required=True,
        help="FILE.py[:ARG], rm_jax:NAME or a config.json",
    )
    parser.add_argument(
        "--layers",
        required=True,
        help="A,B,...: layers, from 1; each is then config.model.features of a run",
    )
    parser.epilog = "--config.KEY=VALUE changes one knob of configs/base.py."
    args = parser.parse_args(words)
    layers = arguments.names(args.layers)
    if not layers or not all(re.fullmatch("[1-9][0-9]{0,4}", n) for n in layers):
        raise arguments.UsageError(
            f"--layers {args.layers!r}: want whole numbers from 1, e.g. 8,16,24"
        )
    from rm_jax import compiles, features
    from rm_jax import config as config_module

    config = config_module.load(args.config)
    for key, value in knobs:
        config_module.override(config, key, value)
    compiles.use_cache(config.train.compile_cache)
    say = lambda line: print(line, file=sys.stderr, flush=True)
    _, sets = features.of_config(config, [*map(int, layers)], say)
    for name, found in sets.items():
        for layer, of in found.items():
            print(
                f"{name}: layer {layer}, {of.meta['examples']} examples, "
                f"{of.meta['bytes'] / 2**20:.1f} MiB: {of.folder}"
            )


def _inspect(words: list[str]) -> None:
    parser = arguments.parser(
        "inspect", "Show what a step computed: rows, mask, scores, loss."
    )
    parser.add_argument("run", type=arguments.path, help="the run directory")
    parser.add_argument(
        "--step", type=arguments.count, required=True, help="the step, from 0"
    )
    parser.add_argument(
        "--rows", type=arguments.count, default=4, help="rows shown; 0 is all"
    )
    parser.add_argument(
        "--member", type=arguments.count, default=0, help="of an ensemble, from 0"
    )
    args = parser.parse_args(words)
    from rm_jax.serve.inspection import inspect_step

    for line in inspect_step(args.run, args.step, args.rows, args.member):
        print(line)


def _diff(words: list[str]) -> int:
    parser = arguments.parser("diff", "Say what differs between two runs.")
    for name, metavar, text in (
        ("a", "RUN_A", "a run directory, local or gs://"),
        ("b", "RUN_B", "another, or one of `rm-jax eval`"),
    ):
        parser.add_argument(name, type=arguments.path, metavar=metavar, help=text)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.epilog = "Exit code: 0 nothing differs, 3 something does, 1 an error."
    args = parser.parse_args(words)
    from rm_jax.report.diff import diff, text_lines
    from rm_jax.writer import to_json

    found = diff(args.a, args.b)
    if args.json:
        print(json.dumps(to_json(found.to_json())))
    else:
        print("\n".join(text_lines(found)))
    return 0 if found.same else 3


def _prepare(words: list[str]) -> None:
    parser = arguments.parser("data prepare", "Write a source into a TFDS directory.")
    arguments.add_data(parser)
    parser.add_argument(
        "--out", type=arguments.path, required=True, help="folder of TFDS data sets"
    )
    parser.add_argument("--name", default="preferences", help="of the data set")
    parser.add_argument("--splits", default="train,valid,test", help="comma-separated")
    args = parser.parse_args(words)
    from rm_jax.data.sources import prepare

    splits = [s for s in args.splits.split(",") if s]
    if not splits or len(set(splits)) < len(splits):
        raise arguments.UsageError(f"--splits {args.splits!r}: want names, each once")
    print(
        prepare(args.data, args.out, args.name, splits, columns=arguments.columns(args))
    )


def _tokenizer(words: list[str]) -> None:
    parser = arguments.parser("data tokenizer", "Train a byte-level BPE on a source.")
    arguments.add_data(parser)
    parser.add_argument(
        "--vocab", type=arguments.count, required=True, help="tokens in all"
    )
    parser.add_argument(
        "--out", type=arguments.path, required=True, help="a new folder"
    )
    args = parser.parse_args(words)
    arguments.check_new("--out", args.out)
    from rm_jax.data.datasets import texts
    from rm_jax.data.sources import open_source
    from rm_jax.data.tokenizers import save_tokenizer, train_bpe

    source = open_source(args.data, columns=arguments.columns(args))
    tokenizer = train_bpe(texts(source.records()), args.vocab)
    if os.path.isdir(args.out):  # empty
        os.rmdir(args.out)
    with store.new_folder(args.out) as folder:
        save_tokenizer(tokenizer, folder)
    print(f"{args.out}: use it with --config.contract.tokenizer={args.out}")


def _audit(words: list[str]) -> None:
    parser = arguments.parser("data audit", "Count what should not be trained on.")
    arguments.add_data(parser)
    args = parser.parse_args(words)
    from rm_jax.data.audit import DEFAULT_POLICY, audit
    from rm_jax.data.sources import open_source

    source = open_source(args.data, columns=arguments.columns(args))
    for line in audit(source.records, DEFAULT_POLICY).report.lines():
        print(line)


def _presets(words: list[str]) -> None:
    arguments.parser(
        "data presets", "List the data sets that preset:NAME opens."
    ).parse_args(words)
    from rm_jax.data.presets import preset_lines

    for line in preset_lines():
        print(line)


VERBS: dict[str, Callable[[list[str]], Any]] = {
    "train": _train,
    "sweep": _sweep,
    "worker": _worker,
    "eval": _eval,
    "report": _report,
    "score": _score,
    "average": _average,
    "export": _export,
    "features": _features,
    "verify": _verify,
    "inspect": _inspect,
    "diff": _diff,
    "data prepare": _prepare,
    "data tokenizer": _tokenizer,
    "data audit": _audit,
    "data presets": _presets,
}


def _add_reducer(parser: arguments.Parser) -> None:
    parser.add_argument(
        "--reducer",
        type=_reducer,
        help="of members: mean, median, min, mean_minus_var[:λ], mean_minus_std[:k] or "
        "quantile[:q]; default the run's config.members.reducer",
    )


def _reducer(text: str) -> str:
    from rm_jax.evals import reducers

    try:
        return str(reducers.parse(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
