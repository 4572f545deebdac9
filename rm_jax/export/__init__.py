"""A trained run as folders that transformers, TRL, OpenRLHF and vLLM load."""

from rm_jax.export.folder import export

__all__ = ["export"]
