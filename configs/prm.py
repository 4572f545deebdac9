"""Process rewards: is each step of a solution right?

    rm-jax train --config configs/prm.py --workdir runs/prm
    rm-jax train --config configs/prm.py:8b-hard --workdir runs/prm-8b

arg: SIZE-LOSS, SIZE of configs/llama.py, LOSS prm800k (labels of people, Lightman 2023,
2305.20050), hard or soft (labels of rollouts, Math-Shepherd, Wang 2023, 2312.08935) or
implicit (Yuan 2024, 2412.01981: right or wrong answers only, the reward is the language
model's log-ratio to a reference). The score of a response is the least of its steps',
for prm800k their product. Full size: prm800k and hard on the data of their papers, soft
and implicit on your file in the schema of rm_jax/data/schema.py, with `steps`, or a
rating and `reference_logp`; no rate or batch of the papers is verified, they are those
of configs/llama.py. From random parameters unless --config.model.init=RUN.
"""

import pathlib

from ml_collections import ConfigDict

from rm_jax.config import load

LOSSES = {
    "prm800k": "prm_bce",
    "hard": "prm_hard",
    "soft": "prm_soft",
    "implicit": "implicit_prm_ce",
}
DATA = {"prm800k": "preset:prm800k", "hard": "preset:math_shepherd"}
ROWS = pathlib.Path(__file__).parent / "rows" / "steps.jsonl.gz"


def get_config(arg: str = "tiny-prm800k") -> ConfigDict:
    """The config of SIZE-LOSS."""
    size, _, loss = (arg or "tiny-prm800k").partition("-")
    if loss not in LOSSES:
        raise ValueError(f"prm:{arg}: want SIZE-LOSS of {list(LOSSES)}")
    c = load(f"rm_jax:llama:{size}")
    c.name = f"prm-{size}-{loss}"
    c.contract.pooling = "last"
    c.loss = ConfigDict({"name": LOSSES[loss], "regularizers": {}})
    if loss == "implicit":
        c.model.lm_head = "tied"
        c.model.head.name = "implicit"
        c.model.head.beta = 0.05  # from memory
    else:
        c.model.head.name = "steps"
        c.model.head.reduce = "prod" if loss == "prm800k" else "min"
        c.train.best_metric = "eval/valid/step_auroc"
        c.train.best_mode = "max"
    if size == "tiny":
        c.data.train = f"jsonl:{ROWS}"
        c.data.valid_fraction = 0.1
        c.data.test_fraction = 0.2
        c.contract.tokenizer = "byte"
        c.batch.tokens_per_slot = 8  # the shortest step
        return c
    c.data.train = DATA.get(loss, "jsonl:steps.jsonl")
    if loss == "hard":
        c.data.on_bad_row = "drop"  # Math-Shepherd has a few
    c.batch.tokens_per_slot = 8
    return c
