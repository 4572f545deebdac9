"""The mesh: its errors, where arrays live, and that 8 devices compute what 1 does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from rm_jax import losses
from rm_jax.build import put_chunk
from rm_jax.data import pack
from rm_jax.data.loader import Loader
from rm_jax.data.order import of_one
from rm_jax.models import ArchConfig, functions
from rm_jax.optim import make_optimizer
from rm_jax.sharding import AXES, make_mesh, path_name, rows_divide, spec_of
from rm_jax.state import create, new_state, plan
from rm_jax.step import make_step, run_step

ARCH = ArchConfig(
    vocab_size=104, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=4,
    d_ff=24, attention_block=16, head_init="normal",
)  # fmt: skip
OPTIM = {
    "name": "sgd",
    "learning_rate": 0.2,
    "schedule": "cosine",
    "warmup_steps": 2,
    "final_fraction": 0.1,
    "b1": 0.5,
    "b2": 0.98,
    "eps": 1e-8,
    "weight_decay": 0.01,
    "clip_norm": 1.0,
    "lr_multipliers": ((".*", 1.0),),
    "weight_decay_multipliers": ((".*", 1.0),),
    "total_steps": 10,
    "n_pattern": 1,
}


def sizes(*values):
    return dict(zip(AXES, (1, *values), strict=True))


@pytest.mark.parametrize(
    ("asked", "want"),
    [((8, 1, 1), (8, 1, 1)), ((-1, 2, 1), (4, 2, 1)), ((2, 1, -1), (2, 1, 4))],
)
def test_mesh_fills_in_what_is_left(asked, want):
    assert dict(make_mesh(sizes(*asked)).shape) == sizes(*want)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ((-1, -1, 1), "'data': -1, .* sizes are 1 or more, and one of them may be -1"),
        ((0, 1, 1), "'data': 0, .* sizes are 1 or more"),
        ((-2, 1, 1), "'data': -2, .* sizes are 1 or more"),
        ((4, 1, 1), "'data': 4, .* needs 4 devices, but there are 8: change a size"),
        ((-1, 3, 1), "'data': -1, .* needs a multiple of 3 devices, but there are 8"),
        ((-1, 16, 1), "'data': -1, .* needs a multiple of 16 devices, but there are 8"),
    ],
)
def test_mesh_errors_say_what_was_asked_and_what_there_is(asked, message):
    with pytest.raises(ValueError, match=f"config.mesh = .*{message}"):
        make_mesh(sizes(*asked))


def test_rows_that_do_not_divide_name_the_chunk():
    mesh = make_mesh(sizes(2, 4, 1))
    rows_divide(mesh, 16, "chunk of row length 64")
    with pytest.raises(ValueError) as error:
        rows_divide(mesh, 12, "chunk of row length 64")
    text = str(error.value)
    assert text.startswith("chunk of row length 64 has 12 rows")
    assert "data x fsdp = 8" in text and "config.batch.chunk_tokens" in text
    rows_divide(make_mesh(sizes(1, 2, 4)), 12, "rows do not care about tensor")


@pytest.mark.parametrize(
    ("name", "shape", "want"),
    [
        ("embed/embedding", (104, 16), P("tensor", "fsdp")),
        ("lm_head", (104, 16), P("tensor", "fsdp")),
        ("layer_1/attn/q/kernel", (16, 16), P("fsdp", "tensor")),
        ("stack_0/attn/k/kernel", (3, 16, 8), P(None, "fsdp", "tensor")),
        ("stack_0/attn/o/kernel", (3, 16, 16), P(None, "tensor", "fsdp")),
        ("layer_1/mlp/up/kernel", (16, 24), P("fsdp", "tensor")),
        ("layer_1/mlp/down/kernel", (24, 16), P("tensor", "fsdp")),
        ("layer_1/norm1/scale", (16,), P()),
        ("head", (16,), P()),
    ],
)
def test_rules(name, shape, want):
    got = spec_of(name, shape, make_mesh(sizes(1, 2, 4)))
    assert got == want or (want == P() and set(got) <= {None})


def test_a_dimension_that_does_not_divide_is_named():
    with pytest.raises(ValueError) as error:
        spec_of("embed/embedding", (97, 16), make_mesh(sizes(1, 2, 4)))
    text = str(error.value)
    assert "embed/embedding (97, 16): dimension 97" in text
    assert "mesh axis tensor = 4: change config.mesh.tensor" in text


@functools.cache
def programs(values, name="sgd"):
    mesh = make_mesh(sizes(*values), jax.devices()[: int(np.prod(values))])
    init, apply = functions(ARCH)
    shapes = jax.eval_shape(init, jax.random.key(0))
    optimizer = make_optimizer(shapes, **(OPTIM | {"name": name}))
    objective = losses.choose({"name": "bradley_terry", "margin": 0.1})
    new = lambda: new_state(
        init(jax.random.key(0)), optimizer, objective.hparams, True, 4
    )
    abstract, shardings = plan(new, mesh)
    step = make_step(
        apply, objective, optimizer, mesh, shardings,
        ema_decay=0.5, spike_sigma=0.0,
    )  # fmt: skip
    return mesh, abstract, shardings, step, new


@pytest.fixture
def data(toy_set):
    rng = np.random.default_rng(0)
    return toy_set(
        [(int(rng.integers(1, 12)), rng.integers(1, 8, 2).tolist()) for _ in range(48)],
        max_length=32,
    )


_DONE = {}


def train(values, data, params):
    """The gradient of one step, then ten steps: losses and parameters."""
    if values not in _DONE:
        _DONE[values] = _train(values, data, params)
    return _DONE[values]


def _train(values, data, params):
    mesh, abstract, shardings, step, _ = programs(values)
    zero = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract)
    fresh = zero.replace(
        params=params,
        ema=params,
        hparams=zero.hparams
        | jax.tree.map(np.asarray, {"optim": HPARAMS[0], "loss": HPARAMS[1]}),
    )
    state = jax.device_put(fresh, shardings)
    loader = Loader(data, pack.shapes((32,), 32 * 8, 8), 16, of_one(len(data), 2))
    batch = loader.batch_at(0)
    assert len(batch.chunks) > 1
    total = step.zeros(state)
    for i, chunk in enumerate(batch.chunks):
        weight = jnp.float32(batch.weight)
        own = put_chunk(mesh, *chunk)
        total, _ = step.gradient(state, total, *own, i, weight, None)
    first = jax.device_get(total)
    for i in range(10):
        batch = loader.batch_at(i)
        chunks = [put_chunk(mesh, *chunk) for chunk in batch.chunks]
        state, metrics = run_step(step, state, chunks, batch.weight)
    return first, jax.device_get((state.params, state.ema, metrics))


HPARAMS = (
    {"b1": 0.5, "learning_rate": 0.2, "weight_decay": 0.01, "clip_norm": 1.0},
    losses.choose({"name": "bradley_terry", "margin": 0.1}).hparams,
)


@pytest.mark.parametrize("values", [(8, 1, 1), (2, 4, 1), (1, 2, 4)], ids=str)
def test_eight_devices_compute_what_one_does(values, data, fresh_params):
    params = fresh_params(ARCH)
    one, eight = (train(v, data, params) for v in ((1, 1, 1), values))

    def check(a, b):
        assert np.all(np.abs(a - b) <= 1e-5 * np.maximum(1, np.abs(b)))

    jax.tree.map(check, eight, one)
    grads = one[0].grads
    assert min(np.abs(g).max() for g in jax.tree.leaves(grads)) > 1e-4
    moved = jax.tree.map(lambda p, q: np.abs(p - q).max(), one[1][0], params)
    assert min(jax.tree.leaves(moved)) > 1e-3


def shards(tree):
    return {
        path_name(path): (x.shape, x.sharding.shard_shape(x.shape))
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_state_is_cut_like_its_parameters(name):
    _, abstract, _, _, _ = programs((1, 2, 4), name)
    found = shards(abstract)
    assert found["params/stack_0/attn/q/kernel"] == ((1, 16, 16), (1, 8, 4))
    assert found["params/embed/embedding"] == ((104, 16), (26, 8))
    params = {k[7:]: v for k, v in found.items() if k.startswith("params/")}
    seen = 0
    for path, (shape, shard) in found.items():
        own = next((p for p in params if path.endswith(f"/{p}")), None)
        if own and shape == params[own][0]:
            assert shard == params[own][1], path
            seen += 1
        else:
            assert shard == shape, path  # counters, factored statistics
    # Parameters, their average and, of Adam, both moments.
    assert len(params) == 21 and (seen == 84 if name == "adamw" else seen >= 42)


def test_state_is_created_where_it_belongs():
    _, abstract, shardings, _, new = programs((2, 4, 1), "adafactor")
    state = create(new, shardings)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
        assert a.sharding.is_equivalent_to(b.sharding, a.ndim) and a.shape == b.shape
    q = state.params["stack_0"]["attn"]["q"]["kernel"]
    assert {s.data.shape for s in q.addressable_shards} == {(1, 4, 16)}
