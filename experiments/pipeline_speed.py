"""How fast is the data pipeline on one core, and how much memory does it take?

    python experiments/pipeline_speed.py --config configs/hh.py:tiny \\
        --config.data.train=hh:helpful-base.test.jsonl.gz --plan 1000000

    python experiments/pipeline_speed.py --config configs/quickstart.py \\
        --parts prepare,train --sizes 10000,1000000 --config.train.duration="60 steps"

The second command runs its parts with so many pairs of the synthetic world each, and
says how memory grows. Each part runs in a process of its own, on one core:

  prepare  reads, audits and tokenises every set of the config into an empty cache
  batches  makes the arrays of training steps: choice, layout, tokens, labels
  plan     lays out one epoch of --plan examples, whose lengths are drawn from the
           prepared set: which response goes to which row of which chunk, every step
  train    trains the config; only when asked for by --parts, for its memory

Memory: `anon_mb` is the peak of RssAnon (sampled), what the process holds for itself.
`peak_mb` is VmHWM: with the pages of memory-mapped files that it touched, which the
system takes back when it needs them.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from rm_jax.config import load, override, validate
from rm_jax.data import cache, datasets, pack
from rm_jax.data.cache import ARRAYS, TokenSet
from rm_jax.data.loader import Loader

# What issue 3 of this project asks of the pipeline: part -> name -> bound.
EXPECTED = {
    "batches": {"tokens_per_cpu_s": (">=", 500_000)},
    "plan": {"wall_s": ("<=", 30), "peak_mb": ("<=", 2000)},
}
GROWTH = 1.1  # of anon_mb, from the smallest of --sizes to the largest
PARTS = ("prepare", "batches", "plan", "train")
BLOCK = 65_536  # examples written at a time


def main() -> None:
    """Runs the parts one after the other and prints what each found."""
    args, rest = _arguments().parse_known_args()
    if args.part:
        found = Meter().measure(globals()[args.part], args, _config(args, rest))
        print(json.dumps(found))
        return
    parts = args.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        raise ValueError(f"unknown parts {sorted(unknown)}; known: {PARTS}")
    sizes = [int(n) for n in args.sizes.split(",") if n]
    found = [_run(args.scratch, parts, n) for n in sizes or [None]]
    for part, name, sign, limit in _bounds(parts):
        for each in found:
            _judge(f"{part} {name}", each[part][name], sign, limit)
    for part in parts if sizes[1:] else ():
        first, *_, last = (each[part]["anon_mb"] for each in found)
        _judge(f"{part} anon_mb, {sizes[-1]} : {sizes[0]}", last / first, "<=", GROWTH)


class Meter:
    """Time and memory of a function of this process."""

    def __init__(self):
        self.anon, self._done = 0, threading.Event()

    def measure(self, part, *arguments) -> dict[str, Any]:
        """What the part returns, with its times in s and its peaks in MB."""
        watch = threading.Thread(target=self._watch, daemon=True)
        watch.start()
        wall, cpu = time.perf_counter(), time.process_time()
        found = part(*arguments)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        self._done.set()
        watch.join()
        memory = {"anon_mb": self.anon / 1e3, "peak_mb": _status("VmHWM") / 1e3}
        return {"wall_s": wall, "cpu_s": cpu, **memory, **found}

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.anon = max(self.anon, _status("RssAnon"))


def prepare(args, config) -> dict[str, Any]:
    """Builds every set of the config."""
    began = time.process_time()
    data = datasets.open_data(config, None, lambda line: None)
    sets = [data.train, *data.evals.values()]
    examples = sum(map(len, sets))
    return {
        "examples": examples,
        "tokens": sum(s.meta["tokens"] for s in sets),
        "examples_per_cpu_s": examples / (time.process_time() - began),
        "cache_bytes_per_example": sum(
            size for s in sets for size in s.meta["bytes"].values()
        )
        / examples,
    }


def batches(args, config) -> dict[str, Any]:
    """Makes training batches."""
    loader = _loader(config, _train(config))
    loader.batch_at(0)  # pages of the cache, imports
    began = time.process_time()
    made = [
        (b.tokens, b.size, b.examples)
        for b in map(loader.batch_at, range(1, args.steps + 1))
    ]
    seconds = time.process_time() - began
    tokens, size, examples = (sum(column) for column in zip(*made, strict=True))
    return {
        "steps": args.steps,
        "tokens_per_example": tokens / examples,
        "padding": 1 - tokens / size,
        "tokens_per_cpu_s": tokens / seconds,
        "examples_per_cpu_s": examples / seconds,
    }


def plan(args, config) -> dict[str, Any]:
    """Lays out an epoch."""
    began = time.process_time()
    loader = _loader(config, cache.open_cache(args.planned))
    opened = time.process_time() - began
    began = time.process_time()
    chunks = tokens = 0
    for step in range(args.plan // config.batch.examples):
        found = loader.layout(loader.items_at(step))
        chunks += len(found)
        tokens += sum(c.tokens for c in found)
    return {
        "examples": args.plan,
        "chunks": chunks,
        "padding": 1 - tokens / (chunks * config.batch.chunk_tokens),
        "open_cpu_s": opened,
        "examples_per_cpu_s": args.plan / (time.process_time() - began),
    }


def train(args, config) -> dict[str, Any]:
    """Trains the config, to see the memory that it takes."""
    import rm_jax

    with tempfile.TemporaryDirectory(dir=args.scratch) as workdir:
        rm_jax.train(config, f"{workdir}/run")
    return {"duration": config.train.duration}


def resampled(data: TokenSet, n: int, folder: str) -> TokenSet:
    """A token set of n examples with the shapes of random ones of `data`.

    Its token file has the right size and no content: only lengths are planned with.
    """
    rng = np.random.default_rng(0)

    def write(scratch: pathlib.Path) -> dict[str, Any]:
        ends = dict.fromkeys(("branch_start", "example_branch", "id_start"), 0)
        for name in ends:
            (scratch / f"{name}.bin").write_bytes(np.zeros(1, ARRAYS[name]).tobytes())
        for size in _blocks(n):
            for name, values in _shapes(data, rng.integers(len(data), size=size)):
                if name in ends:
                    values = ends[name] + np.cumsum(values)
                    ends[name] = int(values[-1])
                with open(scratch / f"{name}.bin", "ab") as file:
                    file.write(values.astype(ARRAYS[name]).tobytes())
        with open(scratch / "tokens.bin", "wb") as file:
            file.truncate(ends["branch_start"] * data.tokens.itemsize)
        (scratch / "ids.txt").write_text("e" * n)
        return {**data.meta, "examples": n, "tokens": ends["branch_start"]}

    return cache.create(folder, write)


def _shapes(data: TokenSet, of: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Values of every array for these examples; offsets as differences."""
    counts = np.diff(data.arrays["example_branch"])[of]
    first = np.asarray(data.arrays["example_branch"])[of]
    within = lambda n: np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
    branches = np.repeat(first, counts) + within(counts)
    responses = np.repeat(first - of, counts - 1) + within(counts - 1)
    yield "branch_start", np.diff(data.arrays["branch_start"])[branches]
    yield "example_branch", counts
    yield "id_start", np.ones(len(of))
    for name in ("prompt_keep", "ranks", "gold", "ratings"):
        yield name, data.arrays[name][responses]
    for name in ("strength", "soft", "weight", "prompt_hash", "source"):
        yield name, data.arrays[name][of]


def _blocks(n: int) -> Iterator[int]:
    for first in range(0, n, BLOCK):
        yield min(BLOCK, n - first)


def _run(scratch: str | None, parts: Sequence[str], size: int | None) -> dict[str, Any]:
    """Runs the parts, prints what each found."""
    knobs = [] if size is None else [f"--config.data.world.train={size}"]
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        found = {part: _in_process(part, folder, knobs) for part in parts}
    print(json.dumps(({"pairs": size} if size else {}) | found, indent=1), flush=True)
    return found


def _judge(what: str, got: float, sign: str, limit: float) -> None:
    ok = got <= limit if sign == "<=" else got >= limit
    print(f"{what}: {got:.4g}, want {sign} {limit}: {'yes' if ok else 'NO'}")


def _in_process(part: str, folder: str, knobs: Sequence[str]) -> dict[str, Any]:
    """Runs a part in a new process on one core; all share the folder."""
    argv = [*sys.argv, *knobs, "--part", part, "--scratch", folder]
    argv += ["--planned", f"{folder}/planned"]
    if not any(a.startswith("--config.data.cache_dir") for a in argv):
        argv.append(f"--config.data.cache_dir={folder}/cache")
    if part == "plan":
        args, rest = _arguments().parse_known_args(argv[1:])
        resampled(_train(_config(args, rest)), args.plan, args.planned)
    environ = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    core = min(os.sched_getaffinity(0))
    done = subprocess.run(
        [sys.executable, *argv],
        env=environ,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    return json.loads(done.stdout.splitlines()[-1])


def _loader(config, data: TokenSet) -> Loader:
    shapes = pack.shapes(
        config.batch.row_lengths,
        config.batch.chunk_tokens,
        config.batch.tokens_per_slot,
    )
    order = datasets.train_order(config.data, data, config.data_seed)
    return Loader(data, shapes, config.batch.examples, order, config.batch.layout)


def _train(config) -> TokenSet:
    return datasets.open_data(config, None, lambda line: None).train


def _config(args, rest: Sequence[str]):
    config = load(args.config)
    for text in rest:
        match = re.fullmatch(r"--config\.([\w.]+)=(.*)", text)
        override(config, match[1], match[2])
    return validate(config)


def _bounds(parts: Sequence[str]) -> Iterator[tuple[str, str, str, float]]:
    for part in parts:
        for name, (sign, limit) in EXPECTED.get(part, {}).items():
            yield part, name, sign, limit


def _status(name: str) -> int:
    """A line of /proc/self/status, in kB."""
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith(name))


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="FILE.py[:ARG] or rm_jax:NAME")
    parser.add_argument(
        "--parts", default="prepare,batches,plan", help=", ".join(PARTS)
    )
    parser.add_argument(
        "--sizes", default="", help="comma-separated: pairs to run with"
    )
    parser.add_argument("--plan", type=int, default=1_000_000, help="examples to plan")
    parser.add_argument("--steps", type=int, default=100, help="batches to make")
    parser.add_argument("--scratch", help="folder for what is built, removed after it")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--planned", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
