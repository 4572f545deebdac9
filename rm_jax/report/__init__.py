"""Run directories -> tables, figures, one html page. Never imports jax.

>>> from rm_jax import report
>>> report.write_report("runs/quickstart")  # doctest: +SKIP
'runs/quickstart/report.html'
"""

from rm_jax.report.html import write_report
from rm_jax.report.runs import Run, load_run

__all__ = ["Run", "load_run", "write_report"]
