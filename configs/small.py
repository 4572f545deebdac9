"""One layer of width 32 on the synthetic world: seconds a run on two CPU cores.

What experiments start from. 2,048 pairs without noise, 300 steps.
"""

from ml_collections import ConfigDict

from rm_jax.config import load


def get_config(arg: str = "") -> ConfigDict:
    """There is no argument."""
    if arg:
        raise ValueError(f"small takes no argument, got {arg!r}")
    c = load("rm_jax:base")
    c.name = "small"
    c.data.world = ConfigDict({"train": 2048, "valid": 500, "test": 2000, "noise": 0.0})
    c.contract.max_length = 128
    c.contract.max_response = 96
    c.contract.pooling = "sum"  # follows length and style beyond what it has seen
    c.model.d_model = 32
    c.model.n_layers = 1
    c.model.n_heads = 2
    c.model.n_kv_heads = 2
    c.model.d_ff = 64
    c.model.attention_block = 256  # a row is one block: fastest at this size on CPU
    c.batch.row_lengths = (256,)
    c.batch.chunk_tokens = 4096
    c.batch.examples = 32
    c.members.at_once = 1  # units of a program in turns: activations stay in cache
    c.optim.learning_rate = 3e-3
    c.train.duration = "300 steps"
    c.train.eval_every = "300 steps"
    c.train.save_every = "150 steps"
    c.train.eval_examples = 500
    c.train.report = False
    c.train.tensorboard = False
    return c
