"""Bradley-Terry on Anthropic HH-RLHF (Bai et al. 2022), human comparisons of dialogues.

    rm-jax train --config configs/hh.py:8b --workdir runs/hh-8b            (hub data)
    rm-jax train --config configs/hh.py:tiny --workdir runs/hh \\
        --config.data.train=hh:helpful-base.test.jsonl.gz                 (a file)

The hub set is Anthropic/hh-rlhf: 161k training and 8.5k test pairs. Validation is cut
out of its training prompts by hash; of a local file all three splits are.

arg: tiny (CPU, minutes), small, 1b, 8b (a TPU pod: give --config.mesh.fsdp). All are
trained from scratch here, so do not expect the 70 % of pretrained 7-8B models; 8b has
the hyper-parameters of RLHFlow's Bradley-Terry recipe (lr 2e-6, cosine, one epoch).
"""

from ml_collections import ConfigDict

from rm_jax.config import load

# d_model, layers, heads, kv heads, d_ff, tokenizer
SIZES = {
    "tiny": (128, 3, 4, 4, 352, "bpe:4096"),
    "small": (512, 8, 8, 4, 1408, "bpe:16384"),
    "1b": (2048, 16, 32, 8, 8192, "bpe:32768"),
    "8b": (4096, 32, 32, 8, 14336, "bpe:65536"),
}


def get_config(arg: str = "tiny") -> ConfigDict:
    """The config of a size in SIZES; default tiny."""
    size = arg or "tiny"
    if size not in SIZES:
        raise ValueError(f"hh has no size {size!r}; known: {sorted(SIZES)}")
    c = load("rm_jax:base")
    c.name = f"hh-{size}"
    c.data.train = "hh:Anthropic/hh-rlhf"
    m = c.model
    m.d_model, m.n_layers, m.n_heads, m.n_kv_heads, m.d_ff, tokenizer = SIZES[size]
    c.contract.tokenizer = tokenizer
    c.contract.max_length = 1024
    c.contract.max_response = 512
    c.batch.row_lengths = (256, 512, 1024)
    if size == "tiny":
        c.batch.examples = 32
        c.batch.chunk_tokens = 2048
        c.optim.learning_rate = 1e-3
        c.train.duration = "3 epochs"
        c.train.eval_every = "1 epochs"
        c.train.save_every = "1 epochs"
        return c
    c.model.dtype = "bfloat16"
    c.model.remat = "layer"
    c.model.head.init = "normal"
    c.batch.examples = 512
    c.batch.chunk_tokens = 65536
    c.loss.regularizers.center = ConfigDict({"weight": 0.01})
    c.optim.learning_rate = 2e-6 if size == "8b" else 2e-5
    c.optim.weight_decay = 1e-3
    c.optim.warmup = "10 steps"
    c.train.duration = "1 epochs"
    return c
