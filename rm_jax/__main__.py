"""`python -m rm_jax` is `rm-jax`."""

from rm_jax.main import console

console()
