"""rm_jax: reward models in JAX/Flax.

    import rm_jax
    config = rm_jax.config.load("rm_jax:quickstart")
    rm_jax.train(config, "runs/quickstart")
    rm_jax.load("runs/quickstart").score("2 + 2?", ["4", "5"])

`train` and `load` import jax when they are first used, so `import rm_jax` is quick.
"""

import importlib
from typing import Any

from rm_jax import config

__all__ = ["config", "load", "train"]


def __getattr__(name: str) -> Any:
    if name == "train":  # the module, which can be called like its function
        return importlib.import_module("rm_jax.train")
    if name == "load":
        return importlib.import_module("rm_jax.serve.scorer").load
    raise AttributeError(f"module 'rm_jax' has no attribute {name!r}")
