"""Every family of backbones against transformers: goldens, and PyTorch beside us."""

import json

import backbones
import jax
import numpy as np
import pytest

from rm_jax import models
from rm_jax.models.arch import from_json
from rm_jax.models.transformer import Layers
from rm_jax.types import PackedBatch

TOLERANCE = 1e-4


def batch(*rows: list[list[np.ndarray]]) -> PackedBatch:
    """Rows of segments of one response each, a slot at the end of each segment."""
    t = max(sum(map(len, row)) for row in rows)
    t = -(-t // 16) * 16
    tokens, positions, segments = np.zeros((3, len(rows), t), np.int32)
    most = max(map(len, rows))
    slots = np.zeros((len(rows), most), np.int32)
    ids = np.full((len(rows), most, 3), -1, np.int32)
    e = 0
    for b, row in enumerate(rows):
        at = 0
        for s, own in enumerate(row):
            cut = slice(at, at + len(own))
            tokens[b, cut], positions[b, cut] = own, np.arange(len(own))
            segments[b, cut] = s + 1
            at += len(own)
            slots[b, s], ids[b, s] = at - 1, (e, 0, 0)
            e += 1
    branches = (segments > 0).astype(np.int32)
    return PackedBatch(tokens, positions, segments, branches, slots, ids)


def shared(prompt, *responses):
    """A row of one segment: a prompt that is there once, and its responses."""
    t = -(-(len(prompt) + sum(map(len, responses))) // 16) * 16
    tokens, positions, segments, branches = np.zeros((4, 1, t), np.int32)
    slots, at = [], 0
    for branch, own in enumerate((prompt, *responses)):
        cut = slice(at, at + len(own))
        first = len(prompt) if branch else 0
        tokens[0, cut], positions[0, cut] = own, first + np.arange(len(own))
        segments[0, cut], branches[0, cut] = 1, branch
        at += len(own)
        slots.append(at - 1)
    ids = [(0, k, 0) for k in range(len(responses))]
    ids = np.array([ids], np.int32)
    slots = np.array([slots[1:]], np.int32)
    return PackedBatch(tokens, positions, segments, branches, slots, ids)


def scores(case):
    """Of `backbones.scored()`: packed, then two responses that share their prompt."""
    arch, params = backbones.ours(case)
    apply = jax.jit(models.functions(arch)[1], static_argnums=(2, 3, 4))
    a, b, c, d = backbones.sequences()
    packed = apply(params, batch([a], [b, c, d]), 4, 1, None).scores[:, 0]
    if arch.attention == "full":  # encoders share nothing
        rows = batch(*([x] for x in backbones.scored()[4:]))
        return np.concatenate([packed, apply(params, rows, 2, 1, None).scores[:, 0]])
    both = apply(params, shared(b, c, d), 1, 2, None).scores[0]
    return np.concatenate([packed, both])


def assert_near(got, want):
    """Nowhere further apart than TOLERANCE."""
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("case", backbones.CASES)
def test_hidden_states_and_scores_are_transformers_own(case):
    arrays, _ = backbones.golden()
    arch, params = backbones.ours(case)
    assert from_json(json.loads(json.dumps(arch.to_json()))) == arch
    rows = batch([backbones.sequences()[0]])
    got = Layers(arch).apply({"params": params}, rows, lambda x: x)
    assert_near(got[:, 0, 3:40:12], arrays[case])
    assert_near(scores(case), arrays[f"{case} scores"])


@pytest.mark.parity
@pytest.mark.parametrize("case", backbones.CASES)
def test_hidden_states_and_scores_beside_pytorch(case):
    """Padded, packed, longer than the window and than what a long rope began with."""
    about, config = backbones.golden()[1][case], backbones.CASES[case]
    arch, params = backbones.ours(case)
    model = backbones.torch_model(config)
    state = model.state_dict()
    shapes = {n: list(x.shape) for n, x in state.items() if x.is_floating_point()}
    assert shapes == about["tensors"]
    a, b, c, d = backbones.sequences()
    want = backbones.torch_hidden(model, [a, b, c, d])
    for rows in ([[a], [b], [c], [d]], [[a], [b, c, d]]):
        hidden = Layers(arch).apply({"params": params}, batch(*rows), lambda x: x)
        e = 0
        for row, own in enumerate(rows):
            at = 0
            for sequence in own:
                got = hidden[:, row, at : at + len(sequence)]
                assert_near(got, want[:, e, : len(sequence)])
                at, e = at + len(sequence), e + 1
    got, rows = scores(case), backbones.scored()
    assert_near(got, backbones.oracle(config, model, rows))
    if arch.attention == "causal":
        assert_near(got, backbones.torch_scores(config, rows, left=True))
        alone = [backbones.torch_scores(config, [row], left=False)[0] for row in rows]
        assert_near(got, alone)
