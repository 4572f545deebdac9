"""The command line: `rm-jax VERB`. Each verb imports what it needs when it runs."""

import argparse
import ast
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

USAGE = """\
rm-jax: train, evaluate and look into reward models.

  rm-jax train   --config FILE[:ARG] --workdir DIR [--config.KEY=VALUE ...]
  rm-jax eval    --checkpoint RUN --data SPEC --out DIR
  rm-jax score   --checkpoint RUN --input X.jsonl --output Y.jsonl
  rm-jax inspect RUN --step N
  rm-jax data prepare   --data SPEC --out DIR
  rm-jax data tokenizer --data SPEC --vocab N --out DIR
  rm-jax data audit     --data SPEC

SPEC is format:path-or-hub-id[@revision][#split]; `rm-jax VERB --help` says more.
RM_JAX_TRACEBACK=1 in the environment shows where an error came from."""

OVERRIDE = re.compile(r"--config\.([\w.]+)=(.*)", re.DOTALL)


class UsageError(ValueError):
    """A command line that cannot be understood."""


def entry() -> None:
    """Runs `rm-jax`; an error is one line on stderr and exit code 1."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    arguments = sys.argv[1:]
    try:
        code = run(arguments)
    except KeyboardInterrupt:
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


def run(arguments: Sequence[str]) -> int:
    """Runs a command line and returns its exit code."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if arguments else 2
    verb, rest = arguments[0], list(arguments[1:])
    if verb == "data" and rest and not rest[0].startswith("-"):
        verb, rest = f"data {rest[0]}", rest[1:]
    if verb not in VERBS:
        raise UsageError(f"unknown command {verb!r}; known: {sorted(VERBS)}")
    return VERBS[verb](rest) or 0


def _train(arguments: list[str]) -> int:
    found = [(a, OVERRIDE.fullmatch(a)) for a in arguments]
    parser = _parser("train", "Train a model, or continue a run where it stopped.")
    parser.add_argument(
        "--config", required=True, help="FILE.py[:ARG], rm_jax:NAME or a config.json"
    )
    parser.add_argument("--workdir", required=True, help="the run directory")
    parser.epilog = "--config.KEY=VALUE changes one knob of configs/base.py."
    args = parser.parse_args([a for a, match in found if not match])
    from rm_jax import config as config_module

    config = config_module.load(args.config)
    for _, match in found:
        if match:
            config_module.override(config, match[1], match[2])
    from rm_jax.train import train

    done = train(config, args.workdir)
    return 75 if done is None else 0  # EX_TEMPFAIL: stopped by a signal, run it again


def _eval(arguments: list[str]) -> None:
    parser = _parser("eval", "Evaluate a trained model on a data set.")
    _add_checkpoint(parser)
    _add_data(parser)
    parser.add_argument("--out", required=True, help="a new directory for the results")
    parser.add_argument(
        "--limit", type=int, default=0, help="first N records; 0 is all"
    )
    args = parser.parse_args(arguments)
    _refuse_existing(args.out)
    from rm_jax.serve.evaluation import evaluate_run

    evaluate_run(
        args.checkpoint, args.data, args.out, args.step, _columns(args), args.limit
    )


def _score(arguments: list[str]) -> None:
    parser = _parser("score", "Score the responses of records, one JSON object a line.")
    _add_checkpoint(parser)
    parser.add_argument("--input", required=True, help="lines {prompt, responses}")
    parser.add_argument("--output", required=True, help="lines {id, scores}")
    args = parser.parse_args(arguments)
    _refuse_existing(args.output)
    from rm_jax.data.sources import open_source
    from rm_jax.serve.scorer import load

    source = open_source(f"jsonl:{args.input}")
    model = load(args.checkpoint, args.step)
    folder = os.path.dirname(os.path.abspath(args.output))
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        path = os.path.join(scratch, "scores")
        with open(path, "w", encoding="utf-8") as f:
            for block in _blocks(source.records(), 1024):
                scores = model.score_records(block)
                for record, row in zip(block, scores, strict=True):
                    values = [float(s) for s in row[: len(record.responses)]]
                    f.write(json.dumps({"id": record.id, "scores": values}) + "\n")
        os.replace(path, args.output)


def _inspect(arguments: list[str]) -> None:
    parser = _parser("inspect", "Show what a step computed: rows, mask, scores, loss.")
    parser.add_argument("run", help="the run directory")
    parser.add_argument("--step", type=int, required=True, help="the step, from 0")
    parser.add_argument("--rows", type=int, default=4, help="rows shown; 0 is all")
    args = parser.parse_args(arguments)
    from rm_jax.serve.inspection import inspect_step

    for line in inspect_step(args.run, args.step, args.rows):
        print(line)


def _prepare(arguments: list[str]) -> None:
    parser = _parser("data prepare", "Write a source into a TFDS directory.")
    _add_data(parser)
    parser.add_argument("--out", required=True, help="folder of TFDS data sets")
    parser.add_argument("--name", default="preferences", help="of the data set")
    parser.add_argument("--splits", default="train,valid,test", help="comma-separated")
    args = parser.parse_args(arguments)
    from rm_jax.data.sources import prepare

    splits = [s for s in args.splits.split(",") if s]
    if not splits or len(set(splits)) < len(splits):
        raise UsageError(f"--splits {args.splits!r}: want names, each once")
    print(prepare(args.data, args.out, args.name, splits, columns=_columns(args)))


def _tokenizer(arguments: list[str]) -> None:
    parser = _parser("data tokenizer", "Train a byte-level BPE on a source.")
    _add_data(parser)
    parser.add_argument("--vocab", type=int, required=True, help="tokens in all")
    parser.add_argument("--out", required=True, help="a new folder")
    args = parser.parse_args(arguments)
    _refuse_existing(args.out)
    from rm_jax.data.datasets import texts
    from rm_jax.data.sources import open_source
    from rm_jax.data.tokenizers import save_tokenizer, train_bpe

    source = open_source(args.data, columns=_columns(args))
    save_tokenizer(train_bpe(texts(source.records()), args.vocab), args.out)
    print(f"{args.out}: use it with --config.contract.tokenizer={args.out}")


def _audit(arguments: list[str]) -> None:
    parser = _parser("data audit", "Count what should not be trained on.")
    _add_data(parser)
    args = parser.parse_args(arguments)
    from rm_jax.data.audit import DEFAULT_POLICY, audit
    from rm_jax.data.sources import open_source

    source = open_source(args.data, columns=_columns(args))
    for line in audit(source.records, DEFAULT_POLICY).report.lines():
        print(line)


VERBS: dict[str, Callable[[list[str]], Any]] = {
    "train": _train,
    "eval": _eval,
    "score": _score,
    "inspect": _inspect,
    "data prepare": _prepare,
    "data tokenizer": _tokenizer,
    "data audit": _audit,
}


def _parser(verb: str, text: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"rm-jax {verb}", description=text, allow_abbrev=False
    )


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, help="a run directory")
    parser.add_argument("--step", type=int, help="of the checkpoint; default the last")


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", required=True, help="SPEC: format:path-or-hub-id[@revision][#split]"
    )
    parser.add_argument(
        "--columns", default="", help='field -> column, e.g. {"prompt": "question"}'
    )


def _columns(args: argparse.Namespace) -> dict[str, str] | None:
    if not args.columns:
        return None
    try:
        found = ast.literal_eval(args.columns)
    except (ValueError, SyntaxError):
        found = None
    if not isinstance(found, dict):
        raise UsageError(f'--columns {args.columns!r}: want {{"field": "column"}}')
    return found


def _refuse_existing(path: str) -> None:
    if os.path.exists(path) and (os.path.isfile(path) or os.listdir(path)):
        raise UsageError(f"{path} is there already: choose another name")


def _blocks(records: Iterator[Any], size: int) -> Iterator[list[Any]]:
    block: list[Any] = []
    for record in records:
        block.append(record)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block
