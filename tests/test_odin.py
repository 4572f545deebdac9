"""ODIN under any layout: four chunks on eight devices are one chunk on one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_step import SGD, close, longer

from rm_jax import losses, sharding
from rm_jax.build import put_chunk
from rm_jax.data import pack
from rm_jax.data.loader import Loader
from rm_jax.data.order import of_one
from rm_jax.models import ArchConfig, functions
from rm_jax.optim import make_optimizer
from rm_jax.state import create, new_state, plan
from rm_jax.step import make_step, run_step

EXAMPLES, STEPS = 52, 10
ARCH = ArchConfig(
    vocab_size=97, d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=8,
    d_ff=24, attention_block=16, head_init="normal", head="odin",
)  # fmt: skip
LOSS = {
    "name": "bt",
    "regularizers": {"odin": {"weight": 0.7}, "odin_orthogonal": {"weight": 0.3}},
}


@pytest.fixture
def data(toy_set):
    rng = np.random.default_rng(3)
    sizes = lambda: (int(rng.integers(2, 8)), rng.integers(1, 9, 2).tolist())
    return toy_set([sizes() for _ in range(64)], max_length=32)


def steps_of(devices, rows, data, params):
    """Chunks a step, (metrics, parameters) after the first step and after ten."""
    objective = losses.choose(LOSS)
    sizes = {"member": 1, "data": devices, "fsdp": 1, "tensor": 1}
    mesh = sharding.make_mesh(sizes, jax.devices()[:devices])
    optimizer = make_optimizer(params, n_pattern=1, **SGD)
    new = lambda: new_state(params, optimizer, objective.hparams, False, 4)
    _, shardings = plan(new, mesh)
    step = make_step(
        functions(ARCH)[1], objective, optimizer, mesh, shardings,
        ema_decay=0.0, spike_sigma=0.0,
    )  # fmt: skip
    state, found, chunks = create(new, shardings), [], []
    loader = Loader(data, pack.shapes((32,), 32 * rows, 8), EXAMPLES, of_one(64, 1))
    for i in range(STEPS):
        batch = longer(loader.batch_at(i))
        chunks.append(len(batch.chunks))
        put = [put_chunk(mesh, *chunk) for chunk in batch.chunks]
        state, metrics = run_step(step, state, put, batch.weight)
        found.append(jax.device_get((metrics, state.params)))
    return chunks, found[0], found[-1]


def test_four_chunks_on_eight_devices_are_one_on_one(data, fresh_params):
    params = jax.tree.map(jnp.asarray, fresh_params(ARCH))
    one, first, last = steps_of(1, 64, data, params)
    many, other_first, other_last = steps_of(8, 8, data, params)
    assert set(one) == {1} and set(many) == {4}
    close(other_first, first, 1e-5)  # plain SGD: the parameters moved by the gradient
    close(other_last, last, 1e-5)
    for at in (first, last):
        assert 0 < at[0]["odin"] < 3 * 0.7 and 0 < at[0]["odin_orthogonal"] < 0.3
    # It does what it is for: the length head is drawn to length, quality off it.
    assert last[0]["odin"] < first[0]["odin"]
    assert last[0]["odin_orthogonal"] < first[0]["odin_orthogonal"]
