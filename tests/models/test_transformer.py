"""The decoder against one written in numpy, and against itself in other layouts."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rm_jax.data import pack
from rm_jax.data.loader import Loader
from rm_jax.losses import choose, example_terms
from rm_jax.models import ArchConfig, functions, make_arch
from rm_jax.types import PackedBatch

ARCH = ArchConfig(
    vocab_size=97,
    d_model=16,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=4,
    d_ff=24,
    attention_block=128,
    head_init="normal",
)
SHAPES = pack.shapes((48,), 48 * 2, 8)
EXAMPLES = [(11, [5, 1, 7]), (6, [4, 3]), (2, [9])]


class Decoder:
    """One sequence at a time in float64: the textbook, nothing packed or shared."""

    def __init__(self, arch, params):
        self.arch = arch
        self.p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def layer(self, i):
        stack = f"stack_{i % self.arch.pattern}"
        if f"layer_{i}" in self.p:
            return self.p[f"layer_{i}"]
        return jax.tree.map(lambda x: x[i // self.arch.pattern], self.p[stack])

    def norm(self, x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + self.arch.norm_eps) * scale

    def rotate(self, x):
        t, half = x.shape[0], x.shape[-1] // 2
        angle = np.arange(t)[:, None] * self.arch.rope_base ** (-np.arange(half) / half)
        turn = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)[:, None]
        return np.concatenate([turn.real, turn.imag], -1)

    def attend(self, x, p, window):
        a, t = self.arch, len(x)
        split = lambda name: (x @ p[name]["kernel"]).reshape(t, -1, a.head_dim)
        q, k, v = self.rotate(split("q")), self.rotate(split("k")), split("v")
        gap = np.arange(t)[:, None] - np.arange(t)
        seen = (gap >= 0) & ((gap < window) if window else True)
        out = []
        for h in range(a.n_heads):
            g = h // (a.n_heads // a.n_kv_heads)
            s = np.where(seen, q[:, h] @ k[:, g].T / math.sqrt(a.head_dim), -np.inf)
            w = np.exp(s - s.max(-1, keepdims=True))
            out.append(w / w.sum(-1, keepdims=True) @ v[:, g])
        return np.concatenate(out, -1) @ p["o"]["kernel"]

    def hidden(self, tokens):
        x = self.p["embed"]["embedding"][tokens]
        for i in range(self.arch.n_layers):
            p = self.layer(i)
            y = self.norm(x, p["norm1"]["scale"])
            x = x + self.attend(y, p["attn"], self.arch.window(i))
            y, m = self.norm(x, p["norm2"]["scale"]), p["mlp"]
            gate = y @ m["gate"]["kernel"]
            gate = gate / (1 + np.exp(-gate))
            x = x + (gate * (y @ m["up"]["kernel"])) @ m["down"]["kernel"]
        return self.norm(x, self.p["final_norm"]["scale"])

    def score(self, prompt, response):
        own = self.hidden(np.concatenate([prompt, response]))[len(prompt) :]
        pooled = {"last": own[-1], "mean": own.mean(0), "sum": own.sum(0)}
        return pooled[self.arch.pooling] @ self.p["head"]

    def logp(self, prompt, response):
        tokens = np.concatenate([prompt, response])
        unembed = self.p.get("lm_head", self.p["embed"]["embedding"])
        logits = self.hidden(tokens)[len(prompt) - 1 : -1] @ unembed.T
        logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return sum(logp[i, token] for i, token in enumerate(response))


def change(**fields):
    return dataclasses.replace(ARCH, **fields)


def first_chunk(data):
    (step,) = Loader(data, SHAPES, 8).in_order()
    return step.chunks[0]


@functools.cache
def program(arch, token_logp=False):
    apply = functions(arch, token_logp)[1]
    return jax.jit(
        lambda p, batch, e, k, key=None: apply(
            p, batch, e, k, None if key is None else (key, key)
        ),
        static_argnums=(2, 3),
    )


@functools.cache
def with_gradient(arch):
    def total(params, batch, e, k):
        scores = functions(arch)[1](params, batch, e, k, None).scores
        return jnp.sum(jnp.sin(scores)), scores

    return jax.jit(jax.grad(total, has_aux=True), static_argnums=(2, 3))


def assert_close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_parameter_names_and_shapes():
    arch = change(n_layers=6, windows=(4, 0), lm_head="untied")
    shapes = jax.eval_shape(functions(arch)[0], jax.random.key(0))
    block = {
        "attn": {
            "q": {"kernel": (16, 16)},
            "k": {"kernel": (16, 8)},
            "v": {"kernel": (16, 8)},
            "o": {"kernel": (16, 16)},
        },
        "mlp": {
            "gate": {"kernel": (16, 24)},
            "up": {"kernel": (16, 24)},
            "down": {"kernel": (24, 16)},
        },
        "norm1": {"scale": (16,)},
        "norm2": {"scale": (16,)},
    }
    two = jax.tree.map(lambda s: (2, *s), block, is_leaf=lambda x: type(x) is tuple)
    assert jax.tree.map(lambda x: x.shape, shapes) == {
        "embed": {"embedding": (97, 16)},
        "stack_0": two,  # layers 0 and 2
        "stack_1": two,  # layers 1 and 3
        "layer_4": block,
        "layer_5": block,
        "final_norm": {"scale": (16,)},
        "head": (16,),
        "lm_head": (97, 16),
    }
    assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    "fields",
    [{}, {"n_layers": 3, "windows": (3, 0)}, {"pooling": "mean"}, {"pooling": "sum"}],
    ids=str,
)
def test_scores_of_the_textbook(toy_set, fresh_params, fields):
    arch = change(**fields)
    params, data = fresh_params(arch), toy_set(EXAMPLES)
    batch, labels = first_chunk(data)
    got = np.asarray(program(arch)(params, batch, *labels.ranks.shape).scores)
    decoder = Decoder(arch, params)
    for row, i in enumerate(labels.ids[:3]):
        for k in range(data.count(i)):
            want = decoder.score(data.branch(i, 0), data.branch(i, k + 1))
            assert_close(got[row, k], want)
    assert (got[labels.present == 0] == 0).all()


@pytest.mark.parametrize("lm_head", ["tied", "untied"])
def test_token_logp_of_the_textbook(toy_set, fresh_params, lm_head):
    arch = change(lm_head=lm_head)
    params, data = fresh_params(arch), toy_set(EXAMPLES)
    batch, labels = first_chunk(data)
    key = jax.random.key(0)  # a key means training: only then is it asked for
    out = program(arch, True)(params, batch, *labels.ranks.shape, key)
    decoder = Decoder(arch, params)
    for row, i in enumerate(labels.ids[:3]):
        for k in range(data.count(i)):
            want = decoder.logp(data.branch(i, 0), data.branch(i, k + 1))
            assert_close(out.token_logp[row, k], want)
    # With log p the last layer runs at every token; the scores are the same.
    alone = program(arch, True)(params, batch, *labels.ranks.shape)
    assert alone.token_logp is None
    assert_close(out.scores, alone.scores)


def test_token_logp_over_several_blocks(toy_set, fresh_params, monkeypatch):
    from rm_jax.models import reward

    arch = change(lm_head="tied")
    params, (batch, labels) = fresh_params(arch), first_chunk(toy_set(EXAMPLES))
    key = jax.random.key(0)
    one = program(arch, True)(params, batch, *labels.ranks.shape, key).token_logp
    monkeypatch.setattr(reward, "LOGP_BLOCK", 20)  # of 48: two blocks and a rest
    program.cache_clear()  # else it would not be traced again
    three = program(arch, True)(params, batch, *labels.ranks.shape, key).token_logp
    program.cache_clear()
    assert_close(three, one)


def test_log_p_needs_an_lm_head(toy_set, fresh_params):
    batch, labels = first_chunk(toy_set(EXAMPLES))
    with pytest.raises(ValueError, match="config.model.lm_head is 'none': set it to"):
        program(ARCH, True)(
            fresh_params(ARCH), batch, *labels.ranks.shape, jax.random.key(0)
        )


def test_a_scan_is_its_layers_one_by_one(toy_set, fresh_params):
    batch, labels = first_chunk(toy_set(EXAMPLES))
    scanned = change(n_layers=3)
    params = fresh_params(scanned)
    grads, scores = with_gradient(scanned)(params, batch, *labels.ranks.shape)
    assert set(params) > {"stack_0", "layer_2"}

    def unstack(tree, pattern, groups):
        """The layers of stack_0 as those of a longer pattern of equal windows."""
        layer = lambda i: (
            tree["layer_2"] if i == 2 else jax.tree.map(lambda x: x[i], tree["stack_0"])
        )
        out = {k: v for k, v in tree.items() if k not in ("stack_0", "layer_2")}
        for j in range(pattern if groups else 0):
            own = [layer(g * pattern + j) for g in range(groups)]
            out[f"stack_{j}"] = jax.tree.map(lambda *x: np.stack(x), *own)
        for i in range(groups * pattern, 3):
            out[f"layer_{i}"] = layer(i)
        return out

    for pattern, groups in ((2, 1), (3, 0)):
        arch = change(n_layers=3, windows=(0,) * pattern)
        assert arch.groups == groups
        own = unstack(params, pattern, groups)
        g, s = with_gradient(arch)(own, batch, *labels.ranks.shape)
        assert_close(s, scores)
        jax.tree.map(assert_close, g, unstack(grads, pattern, groups))


def test_remat_changes_memory_only(toy_set, fresh_params):
    batch, labels = first_chunk(toy_set(EXAMPLES))
    params, remat = fresh_params(ARCH), change(remat="layer")
    size = labels.ranks.shape
    plain, again = (str(with_gradient(a).trace(params, batch, *size).jaxpr)
                    for a in (ARCH, remat))  # fmt: skip
    assert again.count("remat") == 2 and "remat" not in plain  # scanned and last layer
    (g, s), (h, r) = (with_gradient(a)(params, batch, *size) for a in (ARCH, remat))
    assert_close(s, r)
    jax.tree.map(assert_close, g, h)


def test_grouped_queries_are_repeated_heads(toy_set, fresh_params):
    batch, labels = first_chunk(toy_set(EXAMPLES))
    params, plain = fresh_params(ARCH), change(n_kv_heads=4)

    def repeat(path, x):
        if path[-2].key not in ("k", "v"):
            return x
        heads = x.reshape(*x.shape[:-1], 2, 4)  # key heads 0, 0, 1, 1
        return np.repeat(heads, 2, axis=-2).reshape(*x.shape[:-1], 16)

    wide = {k: v for k, v in params.items() if k != "head"}
    wide = jax.tree_util.tree_map_with_path(repeat, wide) | {"head": params["head"]}
    size = labels.ranks.shape
    a = program(ARCH)(params, batch, *size).scores
    assert_close(program(plain)(wide, batch, *size).scores, a)


def test_scores_know_distances_not_positions(toy_set, fresh_params):
    batch, labels = first_chunk(toy_set(EXAMPLES))
    size, params = labels.ranks.shape, fresh_params(ARCH)
    here = program(ARCH)(params, batch, *size).scores
    shifted = batch._replace(positions=batch.positions + 100)
    assert_close(program(ARCH)(params, shifted, *size).scores, here)
    stretched = batch._replace(positions=batch.positions * 2)
    moved = program(ARCH)(params, stretched, *size).scores
    assert np.abs(np.asarray(moved - here)).max() > 0.01


def test_scores_have_no_gradient_from_what_they_may_not_see(toy_set, fresh_params):
    (step,) = Loader(toy_set(EXAMPLES), SHAPES, 8).in_order()
    batch, labels = step.chunks[0]
    # Every token its own id: the gradient by an embedding is the one by its token.
    tokens = np.arange(batch.tokens.size, dtype=np.int32).reshape(batch.tokens.shape)
    params, size = fresh_params(ARCH), labels.ranks.shape
    assert tokens.max() < ARCH.vocab_size

    def scores(embedding):
        own = params | {"embed": {"embedding": embedding}}
        return program(ARCH)(own, batch._replace(tokens=tokens), *size).scores

    moved = np.asarray(jax.jacrev(scores)(params["embed"]["embedding"]))
    moved = np.abs(moved).max(-1)  # [e, k, vocabulary]
    for b, s in zip(*np.nonzero(batch.slot_ids[..., 0] >= 0), strict=True):
        e, k, _ = batch.slot_ids[b, s]
        slot = batch.slots[b, s]
        own = batch.branches[b] == batch.branches[b, slot]
        seen = (batch.branches[b] == 0) | own
        seen &= batch.segments[b] == batch.segments[b, slot]
        seen &= np.arange(len(seen)) <= slot
        want = np.zeros(ARCH.vocab_size, bool)
        want[tokens[b][seen]] = True
        assert (moved[e, k][want] > 0).all() and (moved[e, k][~want] == 0).all()


def test_a_zero_head_starts_at_ln_2(toy_set, fresh_params):
    arch = change(head_init="zero")
    batch, labels = first_chunk(toy_set(EXAMPLES))
    key = jax.random.key(0)
    head = jax.jit(lambda k: functions(arch)[0](k)["head"])(key)
    assert head.shape == (16,) and not np.asarray(head).any()
    own = fresh_params(arch) | {"head": head}
    out = program(arch)(own, batch, *labels.ranks.shape)
    assert not np.asarray(out.scores).any()
    objective = choose({"name": "bradley_terry"})
    loss = example_terms(objective, out, labels, objective.hparams, key)["loss"]
    compared = (labels.present.sum(1) > 1).nonzero()[0]
    assert len(compared) == 2
    np.testing.assert_array_equal(loss[compared], np.float32(math.log(2)))


def test_fresh_parameters_have_the_variance_that_keeps_signals_level():
    arch = change(d_model=64, head_dim=16, n_kv_heads=4, d_ff=96, n_layers=3)
    params = jax.jit(functions(arch)[0])(jax.random.key(0))
    residual = 1 / (2 * 3)  # two outputs a layer are added to the stream
    want = {"q": 1 / 64, "k": 1 / 64, "v": 1 / 64, "o": residual / 64}
    want |= {"gate": 1 / 64, "up": 1 / 64, "down": residual / 96}
    for group in ("stack_0", "layer_2"):
        found = params[group]["attn"] | params[group]["mlp"]
        for name, variance in want.items():
            kernel = np.asarray(found[name]["kernel"])
            assert kernel.var() / variance == pytest.approx(1, abs=0.1), name
        assert not np.array_equal(*np.asarray(params["stack_0"]["attn"]["q"]["kernel"]))
        for norm in ("norm1", "norm2"):
            assert (np.asarray(params[group][norm]["scale"]) == 1).all()
    embedding = np.asarray(params["embed"]["embedding"])
    assert embedding.var() * 64 == pytest.approx(1, abs=0.1)


def test_a_normal_head_has_variance_one_by_d_plus_one():
    arch = change(head_init="normal", d_model=4096, n_heads=1, n_kv_heads=1, n_layers=1)
    init = functions(arch)[0]
    head = np.asarray(jax.jit(lambda k: init(k)["head"])(jax.random.key(3)))
    assert abs(head.mean()) < 4 * 4097**-0.5 / 64
    assert head.var() * 4097 == pytest.approx(1, abs=0.1)


def test_dropout_needs_a_key_and_follows_it(toy_set, fresh_params):
    arch = change(dropout=0.5)
    batch, labels = first_chunk(toy_set(EXAMPLES))
    size, params = labels.ranks.shape, fresh_params(arch)
    run = lambda *key: np.asarray(program(arch)(params, batch, *size, *key).scores)
    one, same, two = (run(jax.random.key(n)) for n in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - two).max() > 0.01
    quiet = program(ARCH)(params, batch, *size).scores
    np.testing.assert_array_equal(run(), quiet)  # no key: evaluation


def test_vocabulary_is_rounded_up_so_that_it_shards():
    from rm_jax import config

    model = config.load("rm_jax:base").model
    assert make_arch(model, 300, "last").vocab_size == 384  # of 128s
    assert make_arch(model, 256, "mean").vocab_size == 256


def test_unknown_arch_lists_the_known_ones():
    from rm_jax import config

    model = config.load("rm_jax:base").model
    model.arch = "encoder"
    with pytest.raises(ValueError, match=r"'encoder'; known: \['decoder', 'init'\]"):
        make_arch(model, 300, "last")


def test_arch_json_round_trip():
    from rm_jax.models import arch

    want = change(windows=(4, 0, 0), dtype="bfloat16")
    assert arch.from_json(want.to_json()) == want
    values = want.to_json() | {"color": 1}
    del values["d_ff"]
    with pytest.raises(ValueError, match=r"missing \['d_ff'\], unknown \['color'\]"):
        arch.from_json(values)


def test_empty_batch_is_finite(fresh_params):
    zeros = np.zeros((2, 48), np.int32)
    empty = PackedBatch(
        zeros, zeros, zeros, zeros, zeros[:, :6], np.full((2, 6, 3), -1, np.int32)
    )
    out = program(ARCH)(fresh_params(ARCH), empty, 12, 3)
    assert not np.asarray(out.scores).any()
