"""Every family of backbones against transformers: goldens, and PyTorch beside us."""

import functools
import json

import backbones
import jax
import numpy as np
import pytest

from rm_jax import models, pretrained
from rm_jax.manifest import named, nested
from rm_jax.models import hf
from rm_jax.models.arch import ArchConfig, from_json
from rm_jax.models.transformer import Layers
from rm_jax.types import PackedBatch

TOLERANCE = 1e-4


@functools.cache
def golden():
    """Arrays by case, and what they are of."""
    found = dict(np.load(backbones.GOLDEN))
    return found, json.loads(found.pop("about").tobytes())


@functools.cache
def ours(case: str) -> tuple[ArchConfig, dict]:
    """Arch and parameters of a case, loaded as from a folder."""
    about = golden()[1][case]
    fields = hf.arch_fields(about["config"]) | {"lm_head": "none"}
    arch = ArchConfig(**fields, attention_block=16)
    init, _ = models.functions(arch)
    shapes = named(jax.eval_shape(init, jax.random.key(0)))[0]
    home = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = {
        p: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=home)
        for p, x in shapes.items()
    }
    source = backbones.source(about["config"], about["tensors"])
    arrays = pretrained.load(source, arch, like)
    return arch, nested(arrays | {"head": np.linspace(-1, 1, arch.d_model)})


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


@pytest.mark.parametrize("case", backbones.CASES)
def test_hidden_states_are_transformers_own(case):
    arrays, _ = golden()
    arch, params = ours(case)
    assert from_json(json.loads(json.dumps(arch.to_json()))) == arch
    rows = batch([backbones.sequences()[0]])
    got = Layers(arch).apply({"params": params}, rows, lambda x: x)
    np.testing.assert_allclose(
        got[:, 0, 3:40:12], arrays[case], rtol=TOLERANCE, atol=TOLERANCE
    )


@pytest.mark.parity
@pytest.mark.parametrize("case", backbones.CASES)
def test_hidden_states_and_scores_beside_pytorch(case):
    """Padded, packed, and longer than the window."""
    about = golden()[1][case]
    arch, params = ours(case)
    model = backbones.torch_model(backbones.CASES[case])
    state = model.state_dict()
    shapes = {n: list(x.shape) for n, x in state.items() if x.is_floating_point()}
    assert shapes == about["tensors"]
    a, b, c, d = backbones.sequences()
    want = backbones.torch_hidden(model, [a, b, c, d])
    for rows in ([[a], [b], [c], [d]], [[a], [b, c, d]]):
        packed = batch(*rows)
        hidden = Layers(arch).apply({"params": params}, packed, lambda x: x)
        _, apply = models.functions(arch)
        scores = apply(params, packed, 4, 1, None).scores[:, 0]
        e = 0
        for row, own in enumerate(rows):
            at = 0
            for sequence in own:
                got = hidden[:, row, at : at + len(sequence)]
                one = want[:, e, : len(sequence)]
                np.testing.assert_allclose(got, one, rtol=TOLERANCE, atol=TOLERANCE)
                score = one[-1, -1] @ params["head"]
                np.testing.assert_allclose(scores[e], score, rtol=1e-4, atol=1e-3)
                at, e = at + len(sequence), e + 1
