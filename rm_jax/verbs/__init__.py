"""What `rm-jax` can be told to do; each verb imports what it needs when it runs."""

from collections.abc import Callable
from typing import Any

from rm_jax.verbs import data, looking, training, weights

# Name -> what takes the words after it and returns an exit code; None is 0.
VERBS: dict[str, Callable[[list[str]], Any]] = {
    "train": training.train,
    "sweep": training.sweep,
    "worker": training.worker,
    "eval": looking.evaluate,
    "report": looking.report,
    "score": looking.score,
    "average": looking.average,
    "export": weights.export,
    "verify": weights.verify,
    "features": weights.features,
    "inspect": looking.inspect,
    "diff": looking.diff,
    "data prepare": data.prepare,
    "data tokenizer": data.tokenizer,
    "data audit": data.audit,
    "data presets": data.presets,
}
