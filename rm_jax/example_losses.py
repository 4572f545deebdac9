"""The training loss of every example in every step, as parquet, on request.

>>> import pyarrow.parquet as pq
>>> pq.read_table("runs/quickstart/example_losses").to_pandas()  # doctest: +SKIP
"""

import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from rm_jax import store
from rm_jax.data.cache import TokenSet

FOLDER = "example_losses"
SCHEMA = pa.schema([("step", pa.int64()), ("id", pa.string()), ("loss", pa.float32())])


class ExampleLosses:
    """Parts workdir/example_losses/STEP.parquet: what was added since the part before.

    A part is written before its step is saved, and parts of later steps than the one
    that a run starts from are deleted: so the parts together hold each example of each
    step once, whatever happened to the run.

    Columns: step, as in metrics.jsonl; id, of the data set; loss, with the example's
    regularisers, before weighting.

    Args:
      workdir: the run directory.
      data: the training set.
      step: the restored step; 0 of a new run.
      active: False writes nothing.
    """

    def __init__(self, workdir: str, data: TokenSet, step: int, active: bool):
        self._folder, self._data = store.join(workdir, FOLDER), data
        self._active = active
        self._rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        if active and store.exists(self._folder):
            for name in store.listdir(self._folder):
                part = re.fullmatch(r"(\d+)\.parquet", name)
                # Anything else is the scratch file of a part, left by a kill.
                if not part or int(part[1]) > step:
                    store.remove(store.join(self._folder, name))

    def add(
        self,
        step: int,
        ids: Sequence[Int[np.ndarray, "e"]],
        losses: Sequence[Float[np.ndarray, "e"]],
    ) -> None:
        """Takes a step.

        Args:
          step: steps done with it.
          ids: of each chunk: index in the data set, -1 where there is no example.
          losses: of each chunk.
        """
        for index, loss in zip(ids, losses, strict=self._active):
            real = index >= 0
            steps = np.full(real.sum(), step, np.int64)
            self._rows.append((steps, index[real], loss[real]))

    def write(self, step: int) -> None:
        """Writes the part of a step that is about to be saved."""
        if not self._rows:
            return
        steps, index, loss = map(np.concatenate, zip(*self._rows, strict=True))
        self._rows.clear()
        table = pa.table([steps, self._data.ids_at(index), loss], schema=SCHEMA)
        file = pa.BufferOutputStream()
        pq.write_table(table, file)
        store.makedirs(self._folder)
        path = store.join(self._folder, f"{step}.parquet")
        store.write_bytes(path, file.getvalue().to_pybytes())
