"""From a config to token sets: sources, audit, tokenizer, contract, cache, in order."""

import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rm_jax import store
from rm_jax.data import cache, contamination, rankings, sources
from rm_jax.data.audit import audit
from rm_jax.data.cache import TokenSet
from rm_jax.data.contract import Contract, Encoder, make_contract
from rm_jax.data.denoise import denoise
from rm_jax.data.join import join, sources_of
from rm_jax.data.mixture import (
    Specs,
    is_counted,
    named,
    parts_of,
    specs_of,
    takes_columns,
)
from rm_jax.data.order import Order, of_mixture, of_one
from rm_jax.data.schema import Record, response_text
from rm_jax.data.scratch import scratch_folder
from rm_jax.data.tokenizers import (
    KNOWN,
    TokenizerError,
    build_tokenizer,
    load_tokenizer,
    save_tokenizer,
)
from rm_jax.limits import FOREIGN, ConfigError
from rm_jax.weights.source import open_source as open_weights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Say = Callable[[str], None]
_LONGEST = 200  # of a path in a token cache, bytes beyond the folder's own


class Data(NamedTuple):
    """Everything a run reads.

    Attributes:
      train: training set.
      evals: name -> evaluation set.
      specs: set -> source -> SPEC, "train" among the sets.
      tokenizer: of the contract.
      contract: how the texts became tokens.
      contamination: name -> `contamination.Overlap` of each evaluation set, as a dict.
    """

    train: TokenSet
    evals: dict[str, TokenSet]
    specs: Specs
    tokenizer: "PreTrainedTokenizerFast"
    contract: Contract
    contamination: dict[str, dict[str, Any]]


def open_source(
    spec: str,
    data: Mapping[str, Any],
    limit: int = 0,
    columns: Mapping[str, str] | None = None,
) -> sources.Source:
    """`sources.open_source` with the knobs of a config's data section."""
    return sources.open_source(
        spec,
        columns=dict((columns or {}).items()),
        world=dict(data["world"].items()),
        on_bad_row=data["on_bad_row"],
        valid_fraction=data["valid_fraction"],
        test_fraction=data["test_fraction"],
        limit=limit,
    )


def cache_root(data: Mapping[str, Any]) -> pathlib.Path:
    """Folder of token caches.

    Raises:
      ConfigError: it is a URL, or a name that no folder can have.
    """
    given = data["cache_dir"]
    where = f"config.data.cache_dir = {given!r:.200}"
    if store.is_url(given):
        raise ConfigError(
            f"{where}: want a folder of this machine's disk, because token caches are "
            "memory-mapped"
        )
    try:
        root = pathlib.Path(given or "~/.cache/rm_jax/tokens").expanduser()
        whole = os.fsencode(os.path.abspath(root))
        if b"\0" in whole:
            raise ValueError("it holds a NUL")
    except (RuntimeError, ValueError) as error:  # no such home folder, or not UTF-8
        raise ConfigError(f"{where}: {error}: want the name of a folder") from None
    longest = max(map(len, whole.split(b"/"))), len(whole) + _LONGEST
    most = os.pathconf("/", "PC_NAME_MAX"), os.pathconf("/", "PC_PATH_MAX") - 1
    if longest[0] > most[0] or longest[1] > most[1]:
        raise ConfigError(
            f"{where}: want a shorter name: {longest[0]} bytes in one of its parts, "
            f"{longest[1]} in the paths of its files, the system takes {most[0]} and "
            f"{most[1]}"
        )
    return root


def open_data(config: Mapping[str, Any], kept_tokenizer: str | None, say: Say) -> Data:
    """Opens every set of a run, building what is not cached.

    Args:
      config: of the run.
      kept_tokenizer: folder of the run's own tokenizer, if it has one already.
      say: prints a line.

    Raises:
      ValueError, FileNotFoundError: what is wrong with a source, a row or the contract.
    """
    data = config["data"]
    cache_root(data)  # refused before anything is opened
    specs, parts = specs_of(data), parts_of(data)
    for name, spec in specs["train"].items():
        if spec != parts[name].spec:
            say(f"training on {spec}: what is held out of it is left out")
    opened = {
        name: {source: _opened(name, source, spec, data) for source, spec in of.items()}
        for name, of in specs.items()
    }
    if kept_tokenizer is not None:
        tokenizer = load_tokenizer(kept_tokenizer)
    else:
        tokenizer = make_tokenizer(config, list(opened["train"].values()), say)
    if data["rankings"] == "pairs":  # the tokenizer is that of the whole rankings
        opened["train"] = {n: rankings.apart(of) for n, of in opened["train"].items()}
    contract = make_contract(config["contract"], tokenizer)
    sets = {
        name: mixed_set(name, of, data, contract, tokenizer, say)
        for name, of in opened.items()
    }
    train = denoise(sets.pop("train"), **data["denoise"])
    decode = Encoder(contract, tokenizer).decode
    found = {
        name: _overlap(train, other, data, decode, say) for name, other in sets.items()
    }
    for name, overlap in found.items():
        say(overlap.line(name))
    contaminated = {name: overlap._asdict() for name, overlap in found.items()}
    return Data(train, sets, specs, tokenizer, contract, contaminated)


def _opened(
    name: str, source: str, spec: str, data: Mapping[str, Any]
) -> sources.Source:
    """A source of a set; what is wrong with it names the knob."""
    parts, limit = parts_of(data), data["limit"] if name == "train" else 0
    columns = parts[source].columns if source in parts else data["columns"]
    with named(name, source):
        columns = columns if takes_columns(spec) else None
        return open_source(spec, data, limit, columns)


def train_order(data: Mapping[str, Any], train: TokenSet, seed: int) -> Order:
    """The order of the training set's examples.

    Raises:
      ValueError: a count or a weight of the mixture that cannot be had.
    """
    if not train.sources:
        return of_one(len(train), seed)
    amounts = {name: part.amount for name, part in parts_of(data).items()}
    return of_mixture(dict(sources_of(train)), amounts, is_counted(data), seed)


def label_counts(data: Data) -> dict[str, dict[str, int]]:
    """What config calls each source of the training set -> label -> examples with it.

    "examples" counts all; a label that no example has is left out.
    """
    meta, out = data.train.meta, {}
    for name, spec in data.specs["train"].items():
        own = meta["source"][name] if name else meta
        where = f"config.data.train.{name}" if name else "config.data.train"
        out[f"{where} = {spec!r}"] = {"examples": own["examples"], **own["given"]}
    return out


def first_not(
    data: Data, field: str, holds: Callable[[np.ndarray], np.ndarray]
) -> tuple[str, str, float] | None:
    """The first value of a training label that may not be had, None where all may.

    Args:
      data: of a run.
      field: an array of the set, one value an example or a response.
      holds: whether each value may be had.

    Returns:
      what config calls the source, the example's id, the value.
    """
    train, values = data.train, data.train.arrays[field]
    bad = np.argwhere(~holds(values))
    if not len(bad):
        return None
    example = int(bad[0][0])
    if len(values) != len(train):  # one a response
        first = train.arrays["example_branch"] - np.arange(len(train) + 1)
        example = int(np.searchsorted(first, example, side="right")) - 1
    name = train.sources[train.arrays["source"][example]] if train.sources else ""
    where = f"config.data.train.{name}" if name else "config.data.train"
    spec = data.specs["train"][name]
    value = float(values[tuple(bad[0])])
    return f"{where} = {spec!r}", train.ids(example + 1)[-1], value


def check_rows(sets: Mapping[str, TokenSet], rivals: bool, reference: bool) -> None:
    """Refuses sets that a head cannot score.

    Args:
      sets: by name.
      rivals: whether an example must have two responses or more.
      reference: whether every response must have a reference_logp.

    Raises:
      ValueError: naming the set, the example and what it lacks.
    """
    for name, of in sets.items():
        counts = of.counts(np.arange(len(of)))
        for ask, bad, lacks in (
            (rivals, counts < 2, "one response, and the head compares responses"),
            (reference, _without(of, counts), "a response without reference_logp"),
        ):
            if ask and bad.any():
                example = of.ids(int(np.argmax(bad)) + 1)[-1]
                raise ValueError(
                    f"the set {name!r}: {bad.sum()} of its {len(of)} examples, such as "
                    f"{example!r}, have {lacks}, which config.model.head.name needs: "
                    "choose another head or give the set what it lacks"
                )


def _without(of: TokenSet, counts: np.ndarray) -> np.ndarray:
    """Whether an example has a response without reference_logp."""
    absent = np.isnan(of.arrays["reference_logp"])
    example = np.repeat(np.arange(len(of)), counts)
    return np.bincount(example[absent], minlength=len(of)) > 0


def epoch_line(data: Mapping[str, Any], order: Order) -> str:
    """What an epoch of a mixture is, in words."""
    size = sum(share.take for share in order.shares)
    each = ", ".join(
        f"{s.take} {s.name}" if is_counted(data) else f"{s.take / size:.1%} {s.name}"
        for s in order.shares
    )
    return f"train: an epoch is {order.epoch} examples, {each}"


def _overlap(
    train: TokenSet,
    other: TokenSet,
    data: Mapping[str, Any],
    decode: Callable,
    say: Say,
) -> contamination.Overlap:
    """`contamination.overlap`, found once for two caches and kept beside them."""
    keys = [contamination.VERSION, train.directory.name, other.directory.name]
    name = hashlib.sha256(json.dumps(keys).encode()).hexdigest()[:32]
    path = cache_root(data) / "overlaps" / f"{name}.json"
    if path.exists():
        try:
            return contamination.Overlap(**store.read_json(os.fspath(path)))
        except (ValueError, TypeError) as error:
            say(f"WARNING {path}: damaged: {error}; found again")
    found = contamination.overlap(
        train, other, contamination.gram_tokens(other, decode)
    )
    store.makedirs(os.fspath(path.parent))
    store.write_sealed(os.fspath(path), found._asdict())
    return found


def given_tokenizer(init: Any) -> "PreTrainedTokenizerFast":
    """The tokenizer of what config.model.init names: weights, or a run.

    Raises:
      TokenizerError: it names none, or weights without one.
    """
    init = init if isinstance(init, str) else init[0]
    if init == "scratch":
        raise TokenizerError(
            "config.contract.tokenizer = 'init' is the tokenizer of what "
            f"config.model.init names, which is 'scratch'; known: {KNOWN}"
        )
    if not init.startswith(FOREIGN):
        return load_tokenizer(store.join(init, "tokenizer"))
    found = open_weights(init).tokenizer
    if found is None:
        raise TokenizerError(
            f"config.model.init = {init!r} has no tokenizer beside it: name one in "
            f"config.contract.tokenizer; known: {KNOWN}"
        )
    return found()


def make_tokenizer(
    config: Mapping[str, Any], train: Sequence[sources.Source], say: Say
) -> "PreTrainedTokenizerFast":
    """The tokenizer of `config.contract.tokenizer`; a trained one is cached."""
    spec = config["contract"]["tokenizer"]
    if spec == "word" and all(source.info["path"] == "world" for source in train):
        from rm_jax.data.world import vocabulary

        return build_tokenizer(spec, words=vocabulary())
    if spec == "init":
        return given_tokenizer(config["model"]["init"])
    if not spec.startswith("bpe:"):
        return build_tokenizer(spec)
    prints = " ".join(source.fingerprint for source in train)
    name = hashlib.sha256(f"{prints} {spec}".encode()).hexdigest()[:32]
    folder = cache_root(config["data"]) / "tokenizers" / name
    if not folder.is_dir():
        say(f"training tokenizer {spec} on {', '.join(s.name for s in train)}")
        every = itertools.chain.from_iterable(texts(s.records()) for s in train)
        trained = build_tokenizer(spec, texts=every)
        try:
            with scratch_folder(folder) as scratch:
                save_tokenizer(trained, os.fspath(scratch))
                store.sync(os.fspath(scratch))
                store.move(os.fspath(scratch), os.fspath(folder))
        except OSError as error:
            if not folder.is_dir():  # else another process finished the same one first
                raise type(error)(
                    f"{folder}: cannot write: {error.strerror or error}: set "
                    "config.data.cache_dir to a folder that can, with room"
                ) from error
    return load_tokenizer(folder)


def texts(records: Iterator[Record]) -> Iterator[str]:
    """Every message of every record: what a tokenizer is trained on."""
    for record in records:
        yield from (m.content for m in record.prompt)
        yield from (response_text(r) for r in record.responses)


def mixed_set(
    name: str,
    opened: Mapping[str, sources.Source],
    data: Mapping[str, Any],
    contract: Contract,
    tokenizer: "PreTrainedTokenizerFast",
    say: Say,
) -> TokenSet:
    """The token set of one source, or that of several joined; cached as `token_set`."""
    one = lambda label, source: token_set(label, source, data, contract, tokenizer, say)
    if list(opened) == [""]:
        return one(name, opened[""])
    sets = {source: one(f"{name}/{source}", of) for source, of in opened.items()}
    folder = cache_root(data) / cache.joined_key(sets)
    if (folder / "meta.json").exists():
        return cache.open_cache(folder)
    return join(sets, folder)


def token_set(
    name: str,
    source: sources.Source,
    data: Mapping[str, Any],
    contract: Contract,
    tokenizer: "PreTrainedTokenizerFast",
    say: Say,
) -> TokenSet:
    """The token set of a source; audited, tokenised and cached when it is not yet."""
    policy = dict(data["audit"].items())
    key = cache.key(source.fingerprint, policy, contract.token_sha())
    folder = cache_root(data) / key
    if not (folder / "meta.json").exists():
        say(f"{name}: tokenising {source.name} into {folder}")

        def write(scratch: pathlib.Path) -> dict[str, Any]:
            audited = audit(source.records, policy, scratch)
            report = dataclasses.asdict(audited.report)
            report["lines"] = audited.report.lines()
            encoder = Encoder(contract, tokenizer)
            return cache.tokenised(
                audited.records(), encoder, scratch, report, source.info
            )

        found = cache.create(folder, write)
    else:
        found = cache.open_cache(folder)
    for line in _summary(name, found):
        say(line)
    return found


def _summary(name: str, data: TokenSet) -> Iterator[str]:
    """What is in a set, and what was dropped or cut to get there."""
    meta = data.meta
    counts, report = meta["counts"], meta["audit"]
    yield (
        f"{name}: {len(data)} examples, {meta['tokens']} tokens, K <= "
        f"{meta['max_responses']}"
    )
    found = {k: n for k, n in report["counts"].items() if n}
    if found:
        yield f"{name}: audit " + ", ".join(
            f"{n} {k} ({report['policy'][k]})" for k, n in found.items()
        )
    cut = {k: n for k, n in counts.items() if n and k.endswith(("cut", "dropped"))}
    if cut or counts.get("unknown_tokens"):
        cut["unknown_tokens"] = counts.get("unknown_tokens", 0)
        yield f"{name}: " + ", ".join(f"{n} {k}" for k, n in cut.items())
    if meta["source"].get("bad_rows"):
        yield f"{name}: {meta['source']['bad_rows']} malformed rows dropped"
