"""InstructGPT (Ouyang 2022, 2203.02155): all pairs of K ranked responses, one example.

    rm-jax train --config configs/instructgpt.py --workdir runs/instructgpt

A prompt's K (K - 1) / 2 pairs are averaged, ties left out, and its K responses go
through the model once. arg: a size of configs/llama.py. Full size: the paper's rate,
decay to a tenth, batch of 64 prompts and one epoch, on Nectar's seven responses for the
paper's four to nine. From random parameters unless --config.model.init=RUN.
"""

from ml_collections import ConfigDict

from rm_jax.config import load


def get_config(arg: str = "tiny") -> ConfigDict:
    """The config of a size of configs/llama.py."""
    size = arg or "tiny"
    c = load(f"rm_jax:llama:{size}")
    c.name = f"instructgpt-{size}"
    c.loss.name = "bt_kwise"
    if size == "tiny":
        c.data.world.train = 2000
        c.data.world.test = 200
        c.data.world.responses = 6
        c.batch.examples = 16
        c.batch.row_lengths = (256,)  # the prompt once, with all six where they fit
        return c
    c.data.train = "preset:nectar"
    del c.loss.regularizers.center
    c.batch.examples = 64
    c.batch.row_lengths = (2048, 4096, 8192)
    c.batch.chunk_tokens = 32 * 8192
    c.optim.learning_rate = 9e-6
    c.optim.final_fraction = 0.1
    c.optim.warmup = "0 steps"  # not verified, nor is the weight decay
    return c
