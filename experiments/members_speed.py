"""What do members cost? Heads on one trunk, adapters, and runs that train together.

    python experiments/members_speed.py --parts heads,adapters,together

`heads`: a step of 4 heads on a shared trunk beside a step of one model. `adapters`: a
step of 4 LoRA members in turns beside 4 times one's, and the memory of both programs,
arrays and temporaries. Steps of what is compared run alternately. `together`: 8 runs of
300 steps as 8 processes, one after the other, and as one process of 8 members, from a
warm token cache; start, compile and steps apart, from timing.jsonl.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax

from rm_jax import losses
from rm_jax.build import build, put_chunk
from rm_jax.config import load, override, validate
from rm_jax.rundir import config_text
from rm_jax.state import create
from rm_jax.step import run_step

# Published beside every release: a ratio, and the most that it may be.
EXPECTED = {"heads": 1.1, "adapters": 1.1, "adapters_memory": 1.3, "together": 0.6}
SMALL = {
    "data.world.train": 2048, "data.world.valid": 200, "data.world.test": 200,
    "contract.max_length": 128, "contract.max_response": 96, "contract.pooling": "sum",
    "model.d_model": 32, "model.n_layers": 1, "model.n_heads": 2, "model.n_kv_heads": 2,
    "model.d_ff": 64, "model.attention_block": 256, "batch.row_lengths": (256,),
    "batch.chunk_tokens": 1024, "batch.examples": 8, "members.at_once": 1,
    "train.duration": "300 steps", "train.report": False, "train.tensorboard": False,
}  # fmt: skip
GROUP = """
import sys
from rm_jax.config import load
from rm_jax.train import train_together
folders = sys.argv[1:]
train_together([load(f"{folder}.json") for folder in folders], folders)
"""


class Program:
    """The programs of a step and the state, ready to run.

    Args:
      config: name or file.
      changes: dotted key -> value.
    """

    def __init__(self, config: str, changes: dict[str, Any]):
        self.built = build(
            _config(config, changes), None, losses.LOSSES, losses.REGULARIZERS,
            lambda line: None,
        )  # fmt: skip
        self.state = create(self.built.new, self.built.shardings)
        self.seconds: list[float] = []

    def run(self, step: int, timed: bool) -> None:
        """One step to its end."""
        batch = self.built.training.batch_at(step)
        chunks = [put_chunk(self.built.mesh, *chunk) for chunk in batch.chunks]
        begin = time.perf_counter()
        self.state, values = run_step(self.built.step, self.state, chunks, batch.weight)
        jax.block_until_ready((self.state, values))
        if timed:
            self.seconds.append(time.perf_counter() - begin)

    def memory(self) -> int:
        """Bytes of the state, and of the gradient program: temporaries and results."""
        batch = self.built.training.batch_at(0)
        chunk = put_chunk(self.built.mesh, *batch.chunks[0])
        total = self.built.step.zeros(self.state)
        weight = jax.numpy.asarray(batch.weight, jax.numpy.float32)
        lowered = self.built.step.gradient.lower(
            self.state, total, *chunk, 0, weight, None
        )
        used = lowered.compile().memory_analysis()
        state = sum(x.nbytes for x in jax.tree.leaves(self.state))
        return state + used.temp_size_in_bytes + used.output_size_in_bytes


def _config(address: str, changes: dict[str, Any]) -> Any:
    config = load(address)
    for key, value in changes.items():
        override(config, key, value)
    return validate(config)


def compare(
    a: dict[str, Any], b: dict[str, Any], config: str, steps: int
) -> dict[str, float]:
    """Median seconds of a step, and bytes, of two programs that run alternately."""
    one, many = Program(config, a), Program(config, b)
    for step in range(steps + 3):
        for program in (one, many):
            program.run(step, timed=step >= 3)
    each = [statistics.median(p.seconds) for p in (one, many)]
    return {"one_s": each[0], "members_s": each[1],
            "one_bytes": one.memory(), "members_bytes": many.memory()}  # fmt: skip


def heads(config: str, steps: int) -> dict[str, float]:
    """4 heads on one trunk, with bootstrap weights, against one model."""
    more = {"members.count": 4, "members.share": "trunk", "data.bootstrap": "poisson"}
    found = compare({}, more, config, steps)
    return found | {"heads": found["members_s"] / found["one_s"]}


def adapters(config: str, steps: int) -> dict[str, float]:
    """4 LoRA members in turns against 4 steps of one; their memory against one's."""
    lora = {"model.lora.rank": 8}
    more = {"members.count": 4, "members.share": "adapters"}
    more["members.at_once"] = 1
    found = compare(lora, lora | more, config, steps)
    return found | {
        "adapters": found["members_s"] / (4 * found["one_s"]),
        "adapters_memory": found["members_bytes"] / found["one_bytes"],
    }


def together(config: str, steps: int) -> dict[str, Any]:
    """8 runs as one process against 8 processes; `steps` is not used."""
    out: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        cache = {"data.cache_dir": f"{folder}/tokens", "train.compile_cache": ""}
        for kind in ("warm", "apart", "one"):
            (folder / kind).mkdir()
            for i in range(8):
                own = {"init_seed": i, "data_seed": i}
                text = config_text(_config(config, SMALL | cache | own))
                (folder / kind / f"{i}.json").write_text(text)
        runs = {kind: [f"{folder}/{kind}/{i}" for i in range(8)] for kind in
                ("warm", "apart", "one")}  # fmt: skip
        _process(runs["warm"][:1])  # fills the token cache
        begin = time.perf_counter()
        for run in runs["apart"]:
            _process([run])
        out["apart_s"] = time.perf_counter() - begin
        begin = time.perf_counter()
        _process(runs["one"])
        out["together_s"] = time.perf_counter() - begin
        out["apart"] = _shares(runs["apart"])
        out["in_one"] = _shares(runs["one"][:1])
    return out | {"together": out["together_s"] / out["apart_s"]}


def _process(workdirs: list[str]) -> None:
    command = [sys.executable, "-c", GROUP, *workdirs]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{workdirs}: {done.stderr[-2000:]}")


def _shares(workdirs: list[str]) -> dict[str, float]:
    """Seconds by kind, summed over all lines of these runs."""
    out: dict[str, float] = {}
    for workdir in workdirs:
        for line in (pathlib.Path(workdir) / "timing.jsonl").read_text().splitlines():
            for key, value in json.loads(line).items():
                if key.startswith("time/"):
                    out[key] = out.get(key, 0.0) + value
    return {key: round(value, 2) for key, value in out.items()}


PARTS = {"heads": heads, "adapters": adapters, "together": together}


def main() -> None:
    """Prints what each part found, and whether it is what it must be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--parts", default=",".join(PARTS), help="of " + ",".join(PARTS)
    )
    parser.add_argument("--config", default="rm_jax:quickstart", help="of the model")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each")
    args = parser.parse_args()
    for part in args.parts.split(","):
        found = PARTS[part](args.config, args.steps)
        print(json.dumps({part: found}, indent=1))
        for name, most in EXPECTED.items():
            if name in found:
                ok = "yes" if found[name] <= most else "NO"
                print(f"{name}: {found[name]:.3f}, want <= {most}: {ok}", flush=True)


if __name__ == "__main__":
    main()
