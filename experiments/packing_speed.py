"""How much faster is a step when each prompt is stored once and rows are packed?

    python experiments/packing_speed.py --config configs/hh.py:tiny \\
        --config.data.train=hh:helpful-base.test.jsonl.gz

The same steps (same examples, same code) run alternately in two layouts: packed, and
padded (one response a row, each pair in the shortest row length that holds it, so
length-bucketed). Printed: pairs a second of each, padding, tokens, number of programs.
"""

import argparse
import json
import re
import statistics
import time

import jax

from rm_jax import losses
from rm_jax.build import Built, build, put_chunk
from rm_jax.config import load, override, validate
from rm_jax.state import create
from rm_jax.step import run_step

# What a packed step must be: design.md §2 and the figures this project publishes.
EXPECTED = {"padding": ("<=", 0.15), "programs": ("<=", 6), "speed_up": (">=", 1.5)}


def main() -> None:
    """Runs both layouts and prints the comparison and its verdict."""
    args, rest = _arguments().parse_known_args()
    layouts = {}
    for layout in ("packed", "padded"):
        config = load(args.config)
        for text in rest:
            match = re.fullmatch(r"--config\.([\w.]+)=(.*)", text)
            override(config, match[1], match[2])
        config.batch.layout = layout
        layouts[layout] = Layout(validate(config))
    for step in range(args.warmup + args.steps):
        for layout in layouts.values():
            layout.run(step, timed=step >= args.warmup)
    found = {name: layout.report() for name, layout in layouts.items()}
    speed_up = found["packed"]["pairs_per_s"] / found["padded"]["pairs_per_s"]
    found["speed_up"] = speed_up
    print(json.dumps(found, indent=1))
    got = {**found["packed"], "speed_up": speed_up}
    for name, (sign, limit) in EXPECTED.items():
        ok = got[name] <= limit if sign == "<=" else got[name] >= limit
        print(f"{name}: {got[name]:.3g}, want {sign} {limit}: {'yes' if ok else 'NO'}")


class Layout:
    """One layout's state, programs and times."""

    def __init__(self, config):
        self.built: Built = build(
            config, None, losses.LOSSES, losses.REGULARIZERS, lambda line: None
        )
        self.state = create(self.built.new, self.built.shardings)
        self.seconds, self.batches, self.shapes = [], [], set()

    def run(self, step: int, timed: bool) -> None:
        """Runs one step to its end."""
        batch = self.built.training.batch_at(step)
        # Every chunk shape is compiled before the clock starts.
        fresh = set(batch.shapes) - self.shapes
        self.shapes |= fresh
        begin = time.perf_counter()
        chunks = [put_chunk(self.built.mesh, *chunk) for chunk in batch.chunks]
        self.state, values = run_step(self.built.step, self.state, chunks, batch.weight)
        jax.block_until_ready((self.state, values))
        if timed and not fresh:
            self.seconds.append(time.perf_counter() - begin)
            self.batches.append(batch)

    def report(self) -> dict[str, float]:
        """Figures over the timed steps."""
        examples = sum(b.examples for b in self.batches)
        size = sum(b.size for b in self.batches)
        tokens = sum(b.tokens for b in self.batches)
        return {
            "steps": len(self.seconds),
            "pairs_per_s": examples / sum(self.seconds),
            "median_step_s": statistics.median(self.seconds),
            "tokens_per_pair": tokens / examples,
            "padding": 1 - tokens / size,
            "chunks_per_step": sum(len(b.chunks) for b in self.batches)
            / len(self.batches),
            "programs": self.built.step.compiled(),
        }


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="FILE.py[:ARG] or rm_jax:NAME")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each")
    parser.add_argument("--warmup", type=int, default=5, help="steps before the clock")
    return parser


if __name__ == "__main__":
    jax.devices()  # start the backend before anything is timed
    main()
