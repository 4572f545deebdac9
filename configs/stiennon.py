"""Learning to summarize (Stiennon 2020, 2009.01325): pairs of summaries of TL;DR.

    rm-jax train --config configs/stiennon.py:1b --workdir gs://BUCKET/tldr

arg: a size of configs/llama.py. Full size: head N(0, 1/(d + 1)), batch 64, a cosine and
one epoch; all but the head and the epoch are from memory, as are the rates 1.5e-5
(1.3B) and 5e-6 (6.7B). Rewards are not shifted to 0 at reference summaries. From random
parameters unless --config.model.init=RUN.
"""

from ml_collections import ConfigDict

from rm_jax.config import load


def get_config(arg: str = "tiny") -> ConfigDict:
    """The config of a size of configs/llama.py."""
    size = arg or "tiny"
    c = load(f"rm_jax:llama:{size}")
    c.name = f"stiennon-{size}"
    c.loss = ConfigDict({"name": "bt", "regularizers": {}})
    if size == "tiny":
        return c
    c.data.train = "preset:tldr"
    c.contract.max_length = 640
    c.contract.max_response = 128
    c.batch.examples = 64
    c.batch.row_lengths = (640,)
    c.batch.chunk_tokens = 64 * 640
    c.optim.learning_rate = 1.5e-5 if size == "1b" else 5e-6
    c.optim.warmup = "0 steps"
    return c
