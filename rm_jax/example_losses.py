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

from rm_jax import schemas, store
from rm_jax.data.cache import TokenSet

FOLDER = "example_losses"
SCHEMA = pa.schema(
    [("step", pa.int64()), ("id", pa.string()), ("loss", pa.float32())],
    metadata={schemas.KEY: str(schemas.VERSIONS["example_losses"])},
)


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

    Raises:
      SchemaError: the last part that stays is of a newer rm_jax.
    """

    def __init__(self, workdir: str, data: TokenSet, step: int, active: bool):
        self._folder, self._data = store.join(workdir, FOLDER), data
        self._active = active
        self._rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        if active and store.exists(self._folder):
            names = store.listdir(self._folder)
            parts = {int(n[:-8]): n for n in names if re.fullmatch(r"\d+\.parquet", n)}
            kept = {at: name for at, name in parts.items() if at <= step}
            if kept:
                _check(store.join(self._folder, kept[max(kept)]))
            # What is no part is the scratch file of one, left by a kill.
            for name in set(names) - set(kept.values()):
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


def _check(path: str) -> None:
    """Refuses a part of a version that this code does not know."""
    try:
        schema = pq.read_schema(pa.BufferReader(store.read_bytes(path)))
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: {error}: move it away, or bring it back") from None
    # The first parts had no version.
    found = (schema.metadata or {}).get(schemas.KEY.encode(), b"1").decode()
    version = int(found) if found.isdecimal() else None
    if why := schemas.problem("example_losses", version):
        raise schemas.SchemaError(f"{path}: {why}")
