"""HelpSteer2 (Wang 2024, 2406.08673 and 2410.01257): ratings first, preferences then.

    rm-jax train --config configs/helpsteer2.py:tiny-reg --workdir runs/reg
    rm-jax train --config configs/helpsteer2.py:tiny-pref --workdir runs/pref \\
        --config.model.init=runs/reg --config.model.head.init=keep

arg: SIZE-STAGE, SIZE of configs/llama.py. reg: squared error of five attributes, the
reward is helpfulness. pref: m sp(-delta), m the strength of the preference, from the
regression and its head. Full size: the rates, batch and epochs of the paper's 70B, on
HelpSteer2 and HelpSteer2-Preference. From random parameters unless
--config.model.init=RUN.
"""

import pathlib

from ml_collections import ConfigDict

from rm_jax.config import load

STAGES = ("reg", "pref")
ROWS = pathlib.Path(__file__).parent / "rows" / "rated.jsonl.gz"


def get_config(arg: str = "tiny-reg") -> ConfigDict:
    """The config of SIZE-STAGE."""
    size, _, stage = (arg or "tiny-reg").partition("-")
    if stage not in STAGES:
        raise ValueError(f"helpsteer2:{arg}: want SIZE-STAGE of {list(STAGES)}")
    c = load(f"rm_jax:llama:{size}")
    c.name = f"helpsteer2-{size}-{stage}"
    c.model.head.name = "attributes"
    c.model.head.weights = ConfigDict({"helpfulness": 1.0})
    c.loss.name = "regress" if stage == "reg" else "scaled_bt"
    if size == "tiny":
        c.data.train = f"jsonl:{ROWS}"
        c.data.valid_fraction = 0.1
        c.data.test_fraction = 0.2
        c.contract.tokenizer = "bpe:512"
        c.batch.examples = 32
        c.optim.learning_rate = 2e-3
        c.train.duration = "60 steps" if stage == "reg" else "30 steps"
        return c
    c.data.train = "preset:helpsteer2"
    del c.loss.regularizers.center
    c.batch.examples = 128  # of prompts; in the paper perhaps of responses
    c.optim.learning_rate = 2e-6
    c.optim.schedule = "constant"
    c.optim.warmup = "0 steps"  # not verified
    c.train.duration = "2 epochs"
    if stage == "pref":
        c.data.train = "preset:helpsteer2_preference"
        c.optim.learning_rate = 1e-6
        c.train.duration = "1 epochs"  # not verified
    return c
