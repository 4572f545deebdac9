"""Coste 2023 (2310.02743): five reward models against over-optimisation.

    rm-jax train --config configs/coste.py --workdir runs/coste
    rm-jax train --config configs/coste.py:1b-uwo --workdir runs/coste-1b

arg: SIZE-REDUCER, SIZE tiny, 44m or 1b (widths and depths of the paper's Pythias, 1.3B,
in this decoder), REDUCER mean, wco (the least) or uwo (mean - variance / 2). The
members differ in head and in the order of the data, a quarter of the preferences is
turned round. Optimiser, batch, epochs and length are the paper's; its relabelled 46,000
AlpacaFarm prompts have no preset, so UltraFeedback stands in. 1b is for 32 chips, a
v6e-32; members are computed in turns. From random parameters unless
--config.model.init=RUN.
"""

from ml_collections import ConfigDict

from rm_jax.config import load

REDUCERS = {"mean": "mean", "wco": "min", "uwo": "mean_minus_var:0.5"}
# d_model, layers, heads, d_ff of Pythia 70M and 1.4B; d_ff is 2/3 of theirs: gated
SIZES = {"44m": (512, 6, 8, 1408), "1b": (2048, 24, 16, 5504)}


def get_config(arg: str = "tiny-mean") -> ConfigDict:
    """The config of SIZE-REDUCER."""
    size, _, reducer = (arg or "tiny-mean").partition("-")
    if size not in ("tiny", *SIZES) or reducer not in REDUCERS:
        raise ValueError(
            f"coste:{arg}: want SIZE-REDUCER of ['tiny', '44m', '1b'], {list(REDUCERS)}"
        )
    c = load("rm_jax:llama:tiny" if size == "tiny" else "rm_jax:llama:1b")
    c.name = f"coste-{size}-{reducer}"
    c.data.label_noise = 0.25
    c.members.count = 5
    c.members.own_order = True
    c.members.reducer = REDUCERS[reducer]
    c.loss = ConfigDict({"name": "bt", "regularizers": {"score_l2": {"weight": 0.001}}})
    if size == "tiny":
        c.model.d_model = 32
        c.batch.examples = 32
        return c
    m = c.model
    m.d_model, m.n_layers, m.n_heads, m.d_ff = SIZES[size]
    m.n_kv_heads = m.n_heads
    m.rope_base = 10000.0
    c.contract.tokenizer = "bpe:50304"
    c.contract.max_length = 520
    c.contract.max_response = 256
    c.data.train = "preset:ultrafeedback"
    c.members.at_once = 1
    if size == "44m":  # one device does
        c.mesh.fsdp = 1
        c.mesh.data = -1
    c.batch.examples = 32
    c.batch.row_lengths = (260, 520)
    c.batch.chunk_tokens = 32 * 520
    c.optim.learning_rate = 1e-5
    c.optim.warmup = "0 steps"  # not verified, nor is the schedule
    c.optim.b1 = 0.9
    c.optim.b2 = 0.95
    c.optim.eps = 1e-12
    c.optim.weight_decay = 0.0
    c.optim.clip_norm = 2.0
    c.train.duration = "5 epochs"
    return c
