"""Verbs about weights: `rm-jax export`, `verify`, `features`."""

import re
import sys

from rm_jax import arguments, store


def export(words: list[str]) -> None:
    """`rm-jax export`."""
    parser = arguments.parser(
        "export", "Write a run as a folder that transformers, TRL and vLLM load."
    )
    parser.add_argument(
        "--checkpoint", type=arguments.path, required=True, help="a run directory"
    )
    parser.add_argument("--to", type=arguments.path, required=True, help="a new folder")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "bf16"),
        default="float32",
        help="of the weights; default float32",
    )
    parser.add_argument(
        "--adapter",
        action="store_true",
        help="LoRA and head as a PEFT adapter of model.init's weights, not merged",
    )
    arguments.add_step(parser)
    args = parser.parse_args(words)
    arguments.check_new("--to", args.to)
    from rm_jax.export import export

    folders = export(
        args.checkpoint, args.to, args.dtype, args.step, as_adapter=args.adapter
    )
    for folder in folders:
        print(f"{folder}: python {store.join(folder, 'verify.py')} checks it")


def verify(words: list[str]) -> int:
    """`rm-jax verify`; returns its exit code."""
    parser = arguments.parser(
        "verify", "Whether another program scores an exported folder as it should."
    )
    parser.add_argument("folder", type=arguments.path, metavar="DIR")
    parser.add_argument(
        "--peer",
        default="hf",
        help="hf (transformers; the default), vllm, or the URL of a vLLM server",
    )
    parser.add_argument(
        "--atol",
        type=float,
        help="allowed difference; default 1e-4, of bfloat16 5 %% of the scores' spread",
    )
    args = parser.parse_args(words)
    from rm_jax.export.peers import verify

    verdict = verify(args.folder, args.peer, args.atol)
    print(verdict)
    return 0 if verdict.ok else 1


def features(words: list[str]) -> None:
    """`rm-jax features`."""
    words, knobs = arguments.take_knobs(words)
    parser = arguments.parser(
        "features",
        "Run a frozen trunk over the sets of a config, once for all later runs.",
    )
    arguments.add_config(parser)
    parser.add_argument(
        "--layers",
        required=True,
        help="A,B,...: layers, from 1; each is then config.model.features of a run",
    )
    args = parser.parse_args(words)
    layers = arguments.names(args.layers)
    if not layers or not all(re.fullmatch("[1-9][0-9]{0,4}", n) for n in layers):
        raise arguments.UsageError(
            f"--layers {args.layers!r}: want whole numbers from 1, e.g. 8,16,24"
        )
    from rm_jax import compiles, features
    from rm_jax import config as config_module

    config = config_module.load(args.config)
    for key, value in knobs:
        config_module.override(config, key, value)
    compiles.use_cache(config.train.compile_cache)
    say = lambda line: print(line, file=sys.stderr, flush=True)
    _, sets = features.of_config(config, [*map(int, layers)], say)
    for name, found in sets.items():
        for layer, of in found.items():
            print(
                f"{name}: layer {layer}, {of.meta['examples']} examples, "
                f"{of.meta['bytes'] / 2**20:.1f} MiB: {of.folder}"
            )
