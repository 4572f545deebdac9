"""A trained run as folders that transformers, TRL and vLLM load."""

from rm_jax.export.folder import export

__all__ = ["export"]
