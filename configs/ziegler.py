"""Ziegler 2019 (1909.08593): which of four continuations is the best.

    rm-jax train --config configs/ziegler.py --workdir runs/ziegler

-log softmax(r) of the best; the others are not ranked. arg: tiny, or 124m, GPT-2's
sizes in this decoder, with the rate, batch and single pass of the paper's 46,000 labels
of summaries, of which there is no preset: UltraFeedback's four responses stand in. The
paper gives rewards mean 0 and variance 1 under the policy before and after; rm_jax does
not. From random parameters unless --config.model.init=RUN.
"""

from ml_collections import ConfigDict

from rm_jax.config import load


def get_config(arg: str = "tiny") -> ConfigDict:
    """The config of tiny or 124m."""
    size = arg or "tiny"
    if size not in ("tiny", "124m"):
        raise ValueError(f"ziegler has no size {size!r}; known: ['tiny', '124m']")
    c = load("rm_jax:llama:tiny")
    c.name = f"ziegler-{size}"
    c.loss.name = "best_of_k"
    c.data.world.responses = 4
    if size == "tiny":
        c.data.world.train = 4000
        c.data.world.test = 300
        c.batch.examples = 32
        c.batch.row_lengths = (256,)
        return c
    c.data.world = ConfigDict()
    c.data.train = "preset:ultrafeedback_ratings"
    c.data.limit = 46_000
    c.contract.tokenizer = "bpe:50257"
    c.contract.pooling = "last"
    c.contract.max_length = 1024
    c.contract.max_response = 512
    c.model.d_model = 768
    c.model.n_layers = 12
    c.model.n_heads = 12
    c.model.n_kv_heads = 12
    c.model.d_ff = 2048  # of a gated MLP: as many parameters as GPT-2's 3,072
    c.model.dtype = "bfloat16"
    c.model.head.init = "normal"
    c.batch.examples = 16
    c.batch.row_lengths = (512, 1024)
    c.batch.chunk_tokens = 8192
    c.optim.learning_rate = 2.5e-5
    c.optim.warmup = "0 steps"  # not verified, nor is the schedule
    c.train.duration = "1 epochs"
    return c
