"""Sweeps: the units of an experiment, planned, trained by workers and judged.

>>> from rm_jax.launch.sweep import sweep
>>> sweep("experiments/margin.py", "runs/margin")  # doctest: +SKIP
0
"""
