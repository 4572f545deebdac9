"""Every knob of a run, with its unit and its reason. Other configs change values only.

Durations are text with a unit: "500 steps", "3 epochs" or "10000 examples".
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference


def get_config(arg: str = "") -> ConfigDict:
    """The defaults; `arg` is not used here."""
    if arg:
        raise ValueError(f"base takes no argument, got {arg!r}")
    c = ConfigDict()
    c.schema_version = 1
    c.name = "base"  # shown in reports

    # Seeds are separate, so that a sweep can vary one source of randomness at a time.
    c.init_seed = 0  # fresh parameters
    c.data_seed = 0  # order of the examples and of the responses in each
    c.dropout_seed = 0
    c.eval_seed = 0  # bootstrap of the intervals

    c.data = ConfigDict()
    # SPEC: format:path-or-hub-id[@revision][#split]. No #split means every row, unless
    # an eval set below is a split of it: then training takes its "#train".
    # Or a mixture, name -> {spec, weight}: each source as often as its share of the
    # weights, an epoch is all examples once on average; or {spec, count}: exactly
    # `count` examples of each source, chosen by data_seed, once an epoch. A source may
    # have `columns` of its own. Its "#valid" and "#test" hold those of every source.
    c.data.train = FieldReference("world:", field_type=object)  # text or a mixture
    # name -> SPEC, or "#valid" / "#test" of the training source (by prompt hash where
    # the source has no such split, so that no prompt is on two sides).
    c.data.eval = ConfigDict({"valid": "#valid", "test": "#test"})
    c.data.valid_fraction = 0.05  # share of prompts hashed into "valid"
    c.data.test_fraction = 0.05
    c.data.columns = ConfigDict()  # field -> column, for format `columns:` and `hf:`
    c.data.on_bad_row = "raise"  # or "drop": dropped and counted
    # What to do with each finding of the audit: keep, drop or raise. All are counted.
    c.data.audit = ConfigDict(
        {
            "identical_responses": "drop",  # nothing to learn from
            "diverging_prompts": "drop",  # the responses answer different prompts
            "empty_side": "drop",  # an empty prompt or response
            "unlabelled": "drop",  # no two ranks, soft label, rating or step label
            "conflict": "keep",  # the same pair preferred both ways: real disagreement
            "duplicate": "keep",
            "tied": "keep",  # every pair of it a tie
            "zero_weight": "keep",  # counts nothing; a set of nothing else is refused
        }
    )
    # Of the training set only: "pairs" makes each two responses of a ranking an example
    # of their own, as trainers of pairs have it; "whole" keeps it in one.
    c.data.rankings = "whole"
    # Of the training set only: its labels corrected by the scores of other models, see
    # rm_jax/data/denoise.py.
    c.data.denoise = ConfigDict()
    # predictions/NAME.parquet of its examples; "" is off. Keep the file, as the data:
    # to continue the run, rm-jax inspect and --uncertainty laplace read it again.
    c.data.denoise.scores = ""
    c.data.denoise.rule = "soft"  # or "flip" or "strength"
    c.data.denoise.share = 0.2  # of the pairs: those that "flip" turns round
    # Of the training set only, by a hash of each example and the seed.
    c.data.label_noise = 0.0  # share of the preferences that are turned round
    c.data.noise_seed = 0
    c.data.bootstrap = "none"  # or "poisson": weights times Poisson(1)
    c.data.bootstrap_seed = 0
    c.data.limit = 0  # first N records of each training source; 0 is all
    c.data.cache_dir = ""  # token cache; "" is ~/.cache/rm_jax/tokens
    c.data.world = ConfigDict()  # knobs of `world:`, see rm_jax/data/world.py

    c.contract = ConfigDict()  # how text becomes tokens; saved with every checkpoint
    # "word" (the world's vocabulary), "byte", "bpe:N" (trained on the training set), a
    # folder or hub id of a transformers tokenizer, or "init": that of model.init.
    c.contract.tokenizer = "word"
    c.contract.template = "tokenizer"  # the tokenizer's own, or a path to a .jinja file
    # Shown as today's date by a template that prints it, e.g. "2024-07-26"; "" refuses
    # such a template, for its scores would change from day to day.
    c.contract.date = ""
    c.contract.bos = "one"  # exactly one, asserted; or "none"
    c.contract.eos = "template"  # whatever the template does; or "append"
    c.contract.max_length = 256  # tokens of prompt + one response
    c.contract.max_response = 128  # tokens of one response
    c.contract.truncation_side = "left"  # of the prompt: keep its end
    c.contract.over_long = "truncate"  # or "drop" or "error"; always counted
    c.contract.pooling = "last"  # token of a response; or "mean" or "sum" over it

    c.model = ConfigDict()
    # "decoder": as described below; "init": the trunk of what init names, of which only
    # attention_block, lm_head, dropout, dtype and remat are as below; or
    # package.module:function(model, vocab_size, pooling) -> ArchConfig.
    c.model.arch = "decoder"
    # Or a run directory: its parameters, not its optimiser; or weights of others:
    # "hf:FOLDER", "hf:OWNER/NAME@REVISION", "gguf:FILE", "llama2c:FILE", which need
    # arch = "init"; or several of one kind, which members take in turn.
    c.model.init = FieldReference("scratch", field_type=object)
    # 0: the trunk is in the program. l: it is frozen, cut after layer l and run over
    # every set once; its features (final norm, pooled) are kept, and the head alone is
    # trained on them, in seconds. Only for weights of others ("hf:", "gguf:", ...).
    c.model.features = 0
    c.model.d_model = 128
    c.model.n_layers = 4
    c.model.n_heads = 4
    c.model.n_kv_heads = 2  # grouped-query attention; n_heads means plain
    c.model.d_ff = 352  # hidden size of the gated MLP
    c.model.windows = (0,)  # attention window per layer, repeated; 0 is unlimited
    c.model.attention = "causal"  # or "full": one segment a response, no sharing
    c.model.attention_block = 128  # tokens; blocks the mask rules out are not computed
    c.model.rope_base = 10000.0
    c.model.norm_eps = 1e-6
    c.model.lm_head = "none"  # "tied" or "untied" keep p(token) for losses that ask
    c.model.vocab_multiple = 128  # vocabulary is rounded up, so that it shards
    c.model.dropout = 0.0  # packed = padded holds exactly only at 0
    c.model.dtype = "float32"  # or "bfloat16": compute; parameters stay float32
    c.model.remat = "none"  # or "layer": recompute each layer in the backward pass
    c.model.head = ConfigDict()  # see rm_jax/models/heads: the name and its knobs
    c.model.head.name = "linear"
    # How its last kernel starts: "zero", or "normal": N(0, 1/(d+1)), Stiennon 2020;
    # odin and pair cannot be "zero". With model.init the head of that run is replaced
    # so ("reset" is "normal"), unless it is "keep".
    c.model.head.init = "zero"
    # Adapters (rm_jax/models/lora.py). All but them and the head is frozen, as if
    # optim.lr_multipliers began with a 0 for it.
    c.model.lora = ConfigDict()
    c.model.lora.rank = 0  # 0 is none: everything is trained
    c.model.lora.alpha = 16.0  # they are multiplied with alpha / rank
    c.model.lora.dropout = 0.0  # of their inputs
    c.model.lora.rslora = False  # alpha / sqrt(rank) in place of alpha / rank
    c.model.lora.targets = ("q", "v")  # regexes of q, k, v, o, gate, up, down

    c.loss = ConfigDict()  # see rm_jax/losses: the name and that loss's own knobs
    c.loss.name = "bradley_terry"
    c.loss.regularizers = ConfigDict()  # name -> {weight, ...}

    c.batch = ConfigDict()
    c.batch.examples = 64  # prompts a step, exactly
    c.batch.layout = "packed"  # or "padded": one response a row, as encoders need
    c.batch.row_lengths = (128, 256)  # one chunk shape each
    c.batch.chunk_tokens = 2048  # rows x length of every chunk
    c.batch.tokens_per_slot = 16  # a row of t tokens scores at most t/16 positions
    c.batch.prefetch = 2  # batches made ahead by the loader's thread

    # Several models in one program, see rm_jax/members.py. Member i is this run with
    # init_seed, dropout_seed and bootstrap_seed + i.
    c.members = ConfigDict()
    c.members.count = 1  # 1 is a plain run
    # "none": full models; "adapters": a frozen trunk, LoRA and head of each; "trunk":
    # one trained trunk, a head of each.
    c.members.share = "none"
    c.members.own_order = False  # also data_seed + i; "trunk" has one order for all
    c.members.at_once = 0  # gradients side by side, the others in turns; 0 is all
    c.members.reducer = "mean"  # of their scores; see rm_jax/evals/reducers.py

    c.mesh = ConfigDict()  # devices along each axis; -1 once: all that are left
    c.mesh.member = 1
    c.mesh.data = -1
    c.mesh.fsdp = 1
    c.mesh.tensor = 1

    c.optim = ConfigDict()
    c.optim.name = "adamw"  # lion, adafactor, sgd
    c.optim.learning_rate = 1e-3  # peak
    c.optim.schedule = "cosine"  # linear, constant
    c.optim.warmup = "20 steps"
    c.optim.final_fraction = 0.1  # of the peak, at the end
    c.optim.b1 = 0.9  # first-moment decay; momentum of sgd
    c.optim.b2 = 0.98  # second-moment decay
    c.optim.eps = 1e-8
    c.optim.weight_decay = 0.0  # decoupled, times the learning rate
    c.optim.clip_norm = 1.0  # global norm; 0 is off
    # (regex, factor), first match wins, every parameter must match one. Names are as if
    # layers were not stacked: layers/3/attn/q/kernel. Factor 0 freezes.
    c.optim.lr_multipliers = ((".*", 1.0),)
    c.optim.weight_decay_multipliers = ((".*(scale|bias)$", 0.0), (".*", 1.0))

    c.train = ConfigDict()
    c.train.duration = "300 steps"
    c.train.log_every = "20 steps"
    c.train.eval_every = "100 steps"
    c.train.save_every = "100 steps"
    c.train.eval_examples = 1000  # of each eval set during training; 0 is all
    c.train.keep_last = 2  # checkpoints
    c.train.keep_best = 1  # an evaluation that would be one of them is saved at once
    c.train.best_metric = "eval/valid/nll"
    c.train.best_mode = "min"
    c.train.ema = 0.0  # decay of an average of the parameters; 0 is off
    c.train.on_nonfinite = "skip"  # or "stop"; skipped steps are counted
    c.train.max_skips = 5  # in a row, then stop
    c.train.spike_sigma = 0.0  # skip a gradient norm over mean + n std; 0 is off
    c.train.spike_window = 64  # steps the mean and std are taken over
    c.train.resume = ""  # a run directory to continue from, in a new workdir
    c.train.tensorboard = True
    c.train.wandb = ""  # project to log to; "" is off (extra wandb)
    c.train.trackio = ""  # the same for trackio (extra trackio)
    c.train.report = True  # write report.html at the end
    c.train.profile = ""  # "START:STOP": trace these steps, from 0, into profile/
    c.train.example_losses = False  # each step's losses by example, into parquet
    c.train.overfit_one_batch = False  # every step has the first one's examples
    # Compiled programs, for the next start; a folder, URL, or "" for none. One that jax
    # was given (JAX_COMPILATION_CACHE_DIR) is used instead.
    c.train.compile_cache = "~/.cache/rm_jax/xla"
    c.train.too_good = 0.97  # accuracy that is suspicious in the first tenth
    return c
