"""The command line: `rm-jax VERB`. Each verb imports what it needs when it runs."""

import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from rm_jax import arguments
from rm_jax.verbs import VERBS

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
