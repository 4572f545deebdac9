"""Verbs that train: `rm-jax train`, `sweep`, `worker`."""

import sys

from rm_jax import arguments


def train(words: list[str]) -> int:
    """`rm-jax train`; returns its exit code."""
    words, knobs = arguments.take_knobs(words)
    parser = arguments.parser(
        "train", "Train a model, or continue a run where it stopped."
    )
    arguments.add_config(parser)
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


def sweep(words: list[str]) -> int:
    """`rm-jax sweep`; returns its exit code."""
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


def worker(words: list[str]) -> int:
    """`rm-jax worker`; returns its exit code."""
    parser = arguments.parser("worker", "Train units of a sweep in one program.")
    arguments.add_root(parser)
    parser.add_argument(
        "--units", required=True, help="A,B,...: a group of ROOT/sweep.json"
    )
    args = parser.parse_args(words)
    from rm_jax.launch.worker import work

    return work(args.root, arguments.names(args.units), sys.stderr)
