"""Bradley-Terry on Llama 3: the recipes that other full-size configs start from.

    rm-jax train --config configs/llama.py --workdir runs/llama        (CPU, seconds)
    rm-jax train --config configs/llama.py:8b --workdir gs://BUCKET/llama-8b

arg: tiny, the synthetic world; 1b, 3b, 8b, shapes of Llama 3.2 and 3.1 with RLHFlow's
recipe (Dong 2024, 2405.07863) on preference_700K; 8b-large, the large-batch recipe of
Skywork-Reward-V2 (Liu 2025, 2507.01352), whose 26 million pairs are not public. Written
for 32 chips of 32 GB, a v6e-32; another slice is --config.mesh.fsdp and the multiple of
rows in batch.chunk_tokens. All start from random parameters unless
--config.model.init=RUN; the tokenizer needs a hub login.
"""

from ml_collections import ConfigDict

from rm_jax.config import load

# d_model, layers, heads, kv heads, d_ff
SIZES = {
    "1b": (2048, 16, 32, 8, 8192),
    "3b": (3072, 28, 24, 8, 8192),
    "8b": (4096, 32, 32, 8, 14336),
}
ARGS = ("tiny", *SIZES, "8b-large")


def get_config(arg: str = "tiny") -> ConfigDict:
    """The config of one of ARGS."""
    arg = arg or "tiny"
    if arg not in ARGS:
        raise ValueError(f"llama has no size {arg!r}; known: {list(ARGS)}")
    c = load("rm_jax:base")
    c.name = f"llama-{arg}"
    if arg == "tiny":
        return _tiny(c)
    m = c.model
    m.d_model, m.n_layers, m.n_heads, m.n_kv_heads, m.d_ff = SIZES[arg[:2]]
    m.rope_base = 500000.0
    m.norm_eps = 1e-5
    m.dtype = "bfloat16"
    m.remat = "layer"
    m.head.init = "normal"  # N(0, 1/(d + 1))
    c.contract.tokenizer = "meta-llama/Llama-3.1-8B-Instruct"  # 128,256 tokens
    c.contract.max_length = 4096
    c.contract.max_response = 2048
    c.data.train = "preset:preference_700k"
    c.batch.examples = 512
    c.batch.row_lengths = (1024, 2048, 4096)
    c.batch.chunk_tokens = 32 * 4096  # a row a chip
    c.mesh.fsdp = 16
    c.mesh.data = 2
    c.loss.regularizers.center = ConfigDict({"weight": 0.01})
    c.optim.learning_rate = 2e-6
    c.optim.warmup = "0.03 epochs"
    c.optim.weight_decay = 1e-3
    c.train.duration = "1 epochs"
    if arg == "8b-large":
        c.contract.max_length = 16384
        c.contract.max_response = 8192
        c.batch.examples = 10_240
        c.batch.row_lengths = (2048, 4096, 16384)
        c.batch.chunk_tokens = 32 * 16384
        c.optim.learning_rate = 3e-6
        c.optim.schedule = "constant"
        c.optim.warmup = "0 steps"  # not verified, nor is the weight decay
    return c


def _tiny(c: ConfigDict) -> ConfigDict:
    c.data.world = ConfigDict({"train": 8000, "valid": 200, "test": 1000})
    c.contract.max_length = 128
    c.contract.max_response = 96
    c.contract.pooling = "sum"  # the world's utility adds up over a response
    c.model.d_model = 64
    c.model.n_layers = 1
    c.model.n_heads = 2
    c.model.n_kv_heads = 2
    c.model.d_ff = 176
    c.batch.row_lengths = (128,)
    c.optim.learning_rate = 5e-3
    c.optim.warmup = "10 steps"
    c.train.duration = "100 steps"
    c.train.eval_every = "50 steps"
    c.train.save_every = "50 steps"
    return c
