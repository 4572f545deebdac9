"""Adapters: nothing at the start, merged = unmerged, only they and the head move."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from rm_jax import masks
from rm_jax.data import pack
from rm_jax.data.loader import Loader
from rm_jax.flops import frozen_flops, step_flops
from rm_jax.models import ArchConfig, functions, lora
from rm_jax.models.lora import FROZEN, TARGETS, Linear, check_multipliers, merge
from rm_jax.optim import make_optimizer

PLAIN = ArchConfig(
    vocab_size=97, d_model=8, n_layers=3, n_heads=2, n_kv_heads=1, head_dim=4, d_ff=12,
    head_init="normal",
)  # fmt: skip
ARCH = dataclasses.replace(PLAIN, lora_rank=2, lora_alpha=6.0, lora_targets=TARGETS)
SHAPES = pack.shapes((32,), 32 * 4, 8)


@functools.cache
def program(arch):
    return jax.jit(
        lambda p, batch, e: functions(arch)[1](p, batch, e, 2, None).scores,
        static_argnums=2,
    )


def scores(arch, params, chunk):
    batch, labels = chunk
    return np.asarray(program(arch)(params, batch, len(labels.ranks)))


@pytest.fixture
def chunk(toy_set):
    data = toy_set([(3, [2, 4]), (5, [1, 6]), (7, [3, 3])], max_length=32)
    (step,) = Loader(data, SHAPES, 3).in_order()
    return step.chunks[0]


def moved(params):
    """The parameters with another B, so that adapters do something."""
    key = jax.random.key(1)

    def change(path, x):
        return jax.random.normal(key, x.shape) if path[-1].key == "b" else x

    return jax.tree_util.tree_map_with_path(change, params)


def without(params):
    flat = flatten_dict(params, sep="/")
    return {path: x for path, x in flat.items() if "/lora/" not in path}


def test_a_fresh_model_is_the_one_without_adapters(chunk):
    params, plain = (functions(a)[0](jax.random.key(0)) for a in (ARCH, PLAIN))
    kept, plain_flat = without(params), flatten_dict(plain, sep="/")
    assert kept.keys() == plain_flat.keys()
    for path, x in kept.items():
        np.testing.assert_array_equal(x, plain_flat[path], err_msg=path)
    np.testing.assert_array_equal(
        scores(ARCH, params, chunk), scores(PLAIN, plain, chunk)
    )


def test_the_layer_by_hand():
    x, w = jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    a, b = jnp.array([[1.0], [3.0]]), jnp.array([[1.0, 0.0, -1.0]])
    arch = dataclasses.replace(ARCH, lora_rank=1, lora_alpha=0.5)
    params = {"kernel": w, "lora": {"a": a, "b": b}}
    found = Linear(3, arch, name="q").apply({"params": params}, x)
    # x W = [1 2 3]; x A = 7; 0.5 * 7 * B = [3.5 0 -3.5]
    np.testing.assert_array_equal(found, [[4.5, 2.0, -0.5]])
    plain = dataclasses.replace(arch, lora_targets=("k",))
    found = Linear(3, plain, name="q").apply({"params": {"kernel": w}}, x)
    np.testing.assert_array_equal(found, [[1.0, 2.0, 3.0]])


def test_rslora_divides_by_the_root_of_the_rank():
    arch = dataclasses.replace(ARCH, lora_rank=4, lora_alpha=6.0)
    assert arch.lora_scale == 1.5
    assert dataclasses.replace(arch, lora_rslora=True).lora_scale == 3.0


def test_targets_are_regexes_of_whole_names():
    assert lora.targets(("q|v", "d.*"), PLAIN) == ("q", "v", "down")
    assert lora.targets((".*",), PLAIN) == TARGETS
    ungated = dataclasses.replace(PLAIN, gated=False)
    assert lora.targets((".*",), ungated) == tuple(t for t in TARGETS if t != "gate")
    with pytest.raises(ValueError, match="targets: 'gate' is none of"):
        lora.targets(("q", "gate"), ungated)


@pytest.mark.parity
@pytest.mark.parametrize("rslora", [False, True])
def test_merged_weights_are_those_of_peft(rslora):
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    w, a, b = (rng.standard_normal(s).astype(np.float32) for s in MERGED)
    net = torch.nn.Sequential(torch.nn.Linear(6, 5, bias=False))
    net[0].weight.data = torch.from_numpy(w.T.copy())
    config = peft.LoraConfig(
        r=3,
        lora_alpha=7,
        use_rslora=rslora,
        target_modules=["0"],
        init_lora_weights=True,
    )
    model = peft.get_peft_model(net, config)
    layer = model.base_model.model[0]
    layer.lora_A["default"].weight.data = torch.from_numpy(a.T.copy())
    layer.lora_B["default"].weight.data = torch.from_numpy(b.T.copy())
    want = model.merge_and_unload()[0].weight.detach().numpy().T
    arch = dataclasses.replace(ARCH, lora_rank=3, lora_alpha=7.0, lora_rslora=rslora)
    params = {"q": {"kernel": jnp.array(w), "lora": {"a": a, "b": b}}}
    got, plain = merge(params, arch)
    np.testing.assert_allclose(got["q"]["kernel"], want, rtol=1e-5, atol=1e-6)
    assert plain.lora_rank == 0 and not plain.lora_rslora


MERGED = ((6, 5), (6, 3), (3, 5))  # shapes of W, A and B


def test_dropout_is_of_the_inputs_of_the_adapter_in_training_only():
    x, w = jnp.array([[1.0, 2.0]]), jnp.array([[5.0], [7.0]])
    a, b = jnp.array([[1.0], [3.0]]), jnp.array([[1.0]])
    arch = dataclasses.replace(ARCH, lora_rank=1, lora_alpha=1.0, lora_dropout=0.5)
    layer = Linear(1, arch, name="q")
    params = {"params": {"kernel": w, "lora": {"a": a, "b": b}}}
    run = lambda key: layer.apply(params, x, True, rngs={"dropout": key})
    found = {float(run(jax.random.key(i))[0, 0]) for i in range(20)}
    # x W = 19; of the inputs 1 and 2, doubled, none, one or both are left: x A is
    assert found == {19.0 + low for low in (0.0, 2.0, 12.0, 14.0)}
    assert float(layer.apply(params, x)[0, 0]) == 19.0 + 7.0


def test_dropout_of_adapters_alone_needs_a_key_in_training(chunk):
    batch, labels = chunk
    arch = dataclasses.replace(ARCH, lora_dropout=0.5)
    params = moved(functions(ARCH)[0](jax.random.key(0)))
    apply = jax.jit(functions(arch)[1], static_argnums=(2, 3))
    run = lambda *keys: apply(params, batch, *labels.ranks.shape, keys or None).scores
    one, same, two = (run(jax.random.key(n), jax.random.key(9)) for n in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - two).max() > 1e-3
    np.testing.assert_array_equal(run(), scores(ARCH, params, chunk))


def test_merged_is_unmerged(chunk):
    params = moved(functions(ARCH)[0](jax.random.key(0)))
    flat, plain = merge(params, ARCH)
    assert plain == PLAIN
    want = scores(ARCH, params, chunk)
    found = scores(plain, flat, chunk)
    assert np.all(np.abs(found - want) <= 1e-5 * np.maximum(1, np.abs(want)))
    first = scores(PLAIN, functions(PLAIN)[0](jax.random.key(0)), chunk)
    assert np.abs(want - first).max() > 1e-2


def test_only_adapters_and_the_head_train():
    shapes = jax.eval_shape(functions(ARCH)[0], jax.random.key(0))
    optimizer = make_optimizer(
        shapes, n_pattern=1, total_steps=1, name="adamw", learning_rate=1e-3,
        schedule="constant", warmup_steps=0, final_fraction=1.0, b1=0.9, b2=0.9,
        eps=1e-8, weight_decay=0.0, clip_norm=1.0,
        lr_multipliers=((FROZEN, 0.0), (".*", 1.0)),
        weight_decay_multipliers=((".*", 1.0),),
    )  # fmt: skip
    trained, frozen = map(flatten_dict, optimizer.split(shapes))
    assert {p[-2] if "lora" in p else p[0] for p in trained} == {"lora", "head"}
    assert not any("lora" in p or p[0] == "head" for p in frozen)
    assert len(trained) == 1 + 2 * 2 * len(TARGETS)  # scanned stack and last layer
    names = masks.parameter_names(
        {"/".join(p): x.shape for p, x in trained.items()}, n_pattern=1
    )
    assert names["stack_0/attn/q/lora/a"] == tuple(
        f"layers/{i}/attn/q/lora/a" for i in (0, 1)
    )


def test_a_learning_rate_of_what_is_frozen_is_refused():
    shapes = jax.eval_shape(functions(ARCH)[0], jax.random.key(0))
    for pattern in ("embed/", "layers/2/mlp/up/kernel$"):
        rules = [(r"head|lora/b$", 2.0), (pattern, 0.5), (".*", 1.0)]
        with pytest.raises(ValueError, match=r"lr_multipliers: .*lora.rank = 2 freeze"):
            check_multipliers(rules, shapes, ARCH)
    check_multipliers([("layers/2/mlp/up", 0.5), (".*", 1.0)], shapes, ARCH)
    with pytest.raises(ValueError, match="optim.lr_multipliers: 3 is not a pair"):
        check_multipliers([3], shapes, ARCH)


def test_flops_by_hand(chunk):
    """One layer, pooled by sum, so that every token passes through every product."""
    arch = dataclasses.replace(
        PLAIN, n_layers=1, pooling="sum", lora_rank=2, lora_targets=("q", "down")
    )
    batch, _ = chunk
    tokens = int((batch.segments > 0).sum())
    kernels = 8 * 8 + 8 * 4 + 8 * 4 + 8 * 8 + 3 * 8 * 12
    adapters = 2 * (8 + 8) + 2 * (12 + 8)
    assert frozen_flops(arch, batch, False) == 2 * tokens * kernels

    class Step:
        chunks, shapes = [chunk], [SHAPES[0]]

    plain = dataclasses.replace(arch, lora_rank=0, lora_targets=())
    more = step_flops(arch, Step, False) - step_flops(plain, Step, False)
    assert more == 3 * 2 * tokens * adapters - 2 * tokens * kernels
