"""Frozen trunks: what one says of a data set is computed once and kept.

With config.model.features = l the trunk of config.model.init is cut after its layer l,
run over every set once, and the head alone is trained on what it said. One pass gives
the features of any number of layers; the pass ends at the highest of them.
"""

import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from rm_jax import models, pretrained, sharding
from rm_jax.config import validate
from rm_jax.data import datasets, pack, vectors
from rm_jax.data.cache import TokenSet
from rm_jax.data.contract import Encoder
from rm_jax.data.loader import Loader
from rm_jax.data.vectors import FeatureSet, Positions
from rm_jax.limits import ConfigError
from rm_jax.manifest import named, nested
from rm_jax.models.arch import ArchConfig, without_head
from rm_jax.models.reward import pool, prompt_ends
from rm_jax.models.transformer import Layers, take
from rm_jax.types import PackedBatch
from rm_jax.weights.source import open_source
from rm_jax.weights.tensors import Source, WeightsError

# How a trunk is computed, not what it computes.
HOW = ("attention_block", "dropout", "remat", "n_layers", "vocab_size")


class Trunk:
    """A frozen trunk that is read when it is first needed.

    Args:
      config: of a run.
      arch: of its model; its layers are the most that can be asked for.
      mesh: where the trunk and the rows live.
      say: prints a line.

    Attributes:
      source: its weights.
    """

    def __init__(
        self, config: Any, arch: ArchConfig, mesh: Mesh, say: Callable[[str], None]
    ):
        if jax.process_count() > 1:
            raise ConfigError(
                f"config.model.features = {config.model.features} with "
                f"{jax.process_count()} processes: a head is trained by one: start one"
            )
        self.source: Source = open_source(config.model.init)
        self._config, self._arch, self._mesh, self._say = config, arch, mesh, say
        self._head = models.heads.find(arch.head)
        # Of the lowest n layers: read once, and compiled once, for all sets.
        self._cut = lambda n: dataclasses.replace(arch, n_layers=n)
        self._params = functools.cache(lambda n: load(self.source, self._cut(n), mesh))
        self._program = functools.cache(self._make_program)

    @functools.cached_property
    def sha256(self) -> str:
        """Of the files of its weights."""
        return self.source.sha256()

    def release(self) -> None:
        """Takes the trunk off the devices; it is read again when it is needed."""
        self._params.cache_clear()

    def record(self) -> dict[str, str]:
        """What run.json and the features' own meta.json say of the weights."""
        return {"where": self.source.where, "sha256": self.sha256}

    def features(self, data: TokenSet) -> FeatureSet:
        """Those of the last layer, from disk or computed now; raises as `of_layers`."""
        last = self._arch.n_layers
        return self.of_layers(data, [last])[last]

    def of_layers(self, data: TokenSet, layers: Sequence[int]) -> dict[int, FeatureSet]:
        """Layer -> features of a token set, from disk or computed in one pass.

        Raises:
          FeatureError: what is on the disk is damaged, or cannot be written.
        """
        layers = sorted(set(layers))
        folders = {layer: self._folder(data, layer) for layer in layers}
        new = [n for n in layers if not (folders[n] / "meta.json").exists()]
        if new:
            self._compute(data, {layer: folders[layer] for layer in new})
        return {n: vectors.open_features(at, data) for n, at in folders.items()}

    def _folder(self, data: TokenSet, layer: int) -> pathlib.Path:
        root = datasets.cache_root(self._config.data) / "features"
        trunk = without_head(self._arch).to_json()
        about = {name: value for name, value in trunk.items() if name not in HOW}
        about |= {"layer": layer, "weights": self.sha256, **self._reads()}
        # Float32 products of other devices, or of another precision, are others.
        about["device"] = jax.default_backend()
        about["precision"] = str(jax.config.jax_default_matmul_precision)
        return root / vectors.key(data, about)

    def _reads(self) -> dict[str, bool]:
        """What the head reads beside the responses."""
        return {"prompts": self._head.prompt, "steps": bool(self._head.steps)}

    def _compute(self, data: TokenSet, folders: Mapping[int, pathlib.Path]) -> None:
        layers, a = list(folders), self._arch
        exact = a.dtype == "float32" or a.pooling != "last"
        meta = {
            "d_model": a.d_model,
            "width": a.d_model * (2 if self._head.prompt else 1),
            "dtype": "float32" if exact else "bfloat16",
            "weights": self.record(),
            "tokens": data.directory.name,
            "pooling": a.pooling,
            **self._reads(),
        }
        count = int(data.meta["tokens"])
        self._say(
            f"features: {len(data)} examples, {count} tokens through the first "
            f"{layers[-1]} layers of {self.source.where}"
        )
        begin = time.perf_counter()
        self._params(layers[-1])  # its errors come before a folder is begun
        with contextlib.ExitStack() as stack:
            write = [
                stack.enter_context(vectors.writer(at, meta | {"layer": layer}))
                for layer, at in folders.items()
            ]
            for of_layers in self._pass(data, tuple(layers)):
                for put, own in zip(write, of_layers, strict=True):
                    put(own)
        seconds = time.perf_counter() - begin
        self._say(
            f"features: layers {', '.join(map(str, layers))} in {seconds:.0f} s, "
            f"{count / seconds:.0f} tokens/s: "
            f"{', '.join(str(at) for at in folders.values())}"
        )

    def _pass(
        self, data: TokenSet, layers: tuple[int, ...]
    ) -> Iterator[Float[np.ndarray, "l positions width"]]:
        """The vectors of one example after the other."""
        params, program = self._params(layers[-1]), self._program(layers)
        positions, loader = Positions(data, bool(self._head.steps)), self._loader(data)
        done = 0
        for block in loader.in_order():
            first = positions.example[done]
            size = positions.example[done + block.examples] - first
            found: np.ndarray | None = None
            for chunk, labels in block.chunks:
                rows = PackedBatch(
                    *(sharding.put_rows(self._mesh, x, len(x)) for x in chunk)
                )
                got = np.asarray(program(params, rows))
                if found is None:
                    found = np.zeros((len(layers), size, got.shape[-1]), got.dtype)
                used = chunk.slot_ids[..., 0] >= 0
                e, k, step = chunk.slot_ids[used].T
                at = positions.at(labels.ids[e], k, step) - first
                found[:, at] = got[:, used]
            ends = positions.example[done : done + block.examples + 1] - first
            for a, b in zip(ends, ends[1:], strict=False):
                yield found[:, a:b]
            done += block.examples

    def _loader(self, data: TokenSet) -> Loader:
        b, steps = self._config.batch, bool(self._head.steps)
        shapes = pack.shapes(b.row_lengths, b.chunk_tokens, b.tokens_per_slot)
        packed = b.layout == "packed"
        roomy = pack.roomy(data, shapes, packed, steps, self._say)
        return Loader(data, roomy, b.examples, None, b.layout, steps=steps)

    def _make_program(self, layers: tuple[int, ...]) -> Callable[..., Array]:
        """(params, rows) -> [l b s width]: each layer as the final norm shows it."""
        arch, prompts = self._cut(layers[-1]), self._head.prompt

        def run(params, batch: PackedBatch):
            def read(hidden):
                own = pool(hidden, batch, arch.pooling)
                if not prompts:
                    return own
                ends = take(hidden, prompt_ends(batch)).astype(jnp.float32)
                return jnp.concatenate([own, ends], axis=-1)

            seen = Layers(arch).apply({"params": params}, batch, read)
            return seen[jnp.array(layers)]

        homes = jax.tree.map(lambda x: x.sharding, self._params(layers[-1]))
        rows = sharding.batch_sharding(self._mesh)
        out = sharding.replicated(self._mesh)
        return jax.jit(run, in_shardings=(homes, rows), out_shardings=out)


def load(source: Source, arch: ArchConfig, mesh: Mesh) -> Any:
    """Parameters of the trunk of an arch, whose layers may be the lowest of a model's.

    Raises:
      WeightsError: tensors that do not fit; names the first.
    """
    init, _ = models.functions(arch)
    shapes = jax.eval_shape(init, jax.random.key(0))
    homes = named(sharding.tree_shardings(shapes, shapes, mesh))[0]
    like = {
        path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=homes[path])
        for path, x in named(shapes)[0].items()
    }
    return nested(pretrained.load(source, arch, like))


def whole(config: Any, arch: ArchConfig, params: Any, mesh: Mesh, sha256: str) -> Any:
    """The parameters of a run on features with those of its trunk.

    Args:
      config: of the run.
      arch: of its model.
      params: of its head.
      mesh: where the trunk goes.
      sha256: of the weights that the features were made with.

    Raises:
      WeightsError, ConfigError: config.model.init is not there, or has changed.
    """
    try:
        source = open_source(config.model.init)
    except WeightsError as error:
        raise WeightsError(
            f"{error}: the run is a head on features of these weights, and nothing "
            "without them: bring them back to that place"
        ) from error
    if source.sha256() != sha256:
        raise ConfigError(
            f"the head was trained on features of config.model.init = "
            f"{config.model.init!r} with sha256 {sha256[:12]}, and now it has "
            f"{source.sha256()[:12]}: bring the old weights back"
        )
    return load(source, arch, mesh) | params


def of_config(
    config: Any, layers: Sequence[int], say: Callable[[str], None]
) -> tuple[datasets.Data, dict[str, dict[int, FeatureSet]]]:
    """The sets of a config, and their features: set -> layer -> FeatureSet.

    Args:
      config: as of a run; config.model.features is not read.
      layers: from 1; the forward pass ends at the highest.
      say: prints a line.

    Raises:
      ConfigError, ValueError: what is wrong with the config, the data or the weights.
    """
    config.model.features = max(layers)
    config = validate(config)
    mesh, b = sharding.make_mesh(config.mesh), config.batch
    for shape in pack.shapes(b.row_lengths, b.chunk_tokens, b.tokens_per_slot):
        sharding.rows_divide(mesh, shape.rows, f"chunk of row length {shape.length}")
    models.check(config.model, config.contract.pooling)
    data = datasets.open_data(config, None, say)
    arch = models.make_arch(
        config.model,
        Encoder(data.contract, data.tokenizer).vocab_size,
        config.contract.pooling,
        data.train.meta["attributes"],
    )
    trunk = Trunk(config, arch, mesh, say)
    sets = {"train": data.train, **data.evals}
    found = {name: trunk.of_layers(tokens, layers) for name, tokens in sets.items()}
    return data, found
