"""Good or bad, without a rival: thumbs up and down, as in KTO (2402.01306).

    rm-jax train --config configs/kto.py --workdir runs/kto

The loss is that of a logistic regression of the one rating, 1 or 0; what is rarer
weighs more, so that both weigh alike. arg: a size of configs/llama.py, whose recipe it
takes. Full size: your file with one rating a response. From random parameters unless
--config.model.init=RUN.
"""

import pathlib

from ml_collections import ConfigDict

from rm_jax.config import load

ROWS = pathlib.Path(__file__).parent / "rows" / "rated.jsonl.gz"


def get_config(arg: str = "tiny") -> ConfigDict:
    """The config of a size of configs/llama.py."""
    size = arg or "tiny"
    c = load(f"rm_jax:llama:{size}")
    c.name = f"kto-{size}"
    c.loss = ConfigDict({"name": "binary", "regularizers": {}})
    if size == "tiny":
        c.loss.desirable = 2.0  # a third of the responses
        c.data.train = f"columns:{ROWS}"
        c.data.columns = ConfigDict(
            {
                "prompt": "prompt",
                "responses": "responses",
                "ranks": "ranks",  # for the evaluations; the loss does not read them
                "ratings": "meta.thumbs",
            }
        )
        c.data.valid_fraction = 0.1
        c.data.test_fraction = 0.2
        c.contract.tokenizer = "bpe:512"
        c.batch.examples = 32
        c.optim.learning_rate = 2e-3
        c.train.duration = "30 steps"
        return c
    c.data.train = "jsonl:thumbs.jsonl"
    return c
