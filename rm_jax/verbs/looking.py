"""Verbs that look at what was trained: eval, report, score, average, inspect, diff."""

import argparse
import json
import sys

from rm_jax import arguments, store


def evaluate(words: list[str]) -> None:
    """`rm-jax eval`."""
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


def report(words: list[str]) -> None:
    """`rm-jax report`."""
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


def score(words: list[str]) -> None:
    """`rm-jax score`."""
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


def average(words: list[str]) -> None:
    """`rm-jax average`."""
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


def inspect(words: list[str]) -> None:
    """`rm-jax inspect`."""
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


def diff(words: list[str]) -> int:
    """`rm-jax diff`; returns its exit code."""
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
