"""A reward model for the synthetic world: the whole path in about two minutes.

    rm-jax train --config configs/quickstart.py --workdir runs/quickstart

Two CPU cores, 60,000 synthetic pairs, one decoder layer. Because the world knows its
gold utility and what it did to its annotators, the report can say how much of the
annotators' length and sycophancy bias the model took over.
"""

from ml_collections import ConfigDict

from rm_jax.config import load


def get_config(arg: str = "") -> ConfigDict:
    """No argument."""
    if arg:
        raise ValueError(f"quickstart takes no argument, got {arg!r}")
    c = load("rm_jax:base")
    c.name = "quickstart"
    c.data.world.train = 60_000
    c.contract.max_length = 128
    c.contract.max_response = 96
    c.contract.pooling = "sum"  # the world's utility adds up over a response
    c.model.d_model = 64
    c.model.n_layers = 1
    c.model.n_heads = 2
    c.model.n_kv_heads = 2
    c.model.d_ff = 176
    c.model.attention_block = 256  # a row is one block: fastest at this size on CPU
    c.optim.learning_rate = 2e-3
    c.optim.warmup = "40 steps"
    c.train.duration = "1 epochs"
    c.train.eval_every = "300 steps"
    c.train.save_every = "300 steps"
    return c
