"""Which of many answers to a question is true: TruthfulQA's human judgements.

    rm-jax train --config configs/truthfulqa.py --workdir runs/truthfulqa \\
        --config.data.train=truthfulqa_judge:finetune_truth.jsonl.gz

Data: finetune_truth.jsonl of the TruthfulQA judge (Lin et al. 2022), lines of
{"prompt": "Q: ...\\nA: ...\\nTrue:", "completion": " yes" or " no"}; a question's
answers become one example of up to 42 responses. Split by question. From scratch, a few
minutes on two CPU cores. A linear model on TF-IDF reaches .70 to .77; the longer answer
is the true one in .54 of the pairs.
"""

from ml_collections import ConfigDict

from rm_jax.config import load


def get_config(arg: str = "") -> ConfigDict:
    """No argument."""
    if arg:
        raise ValueError(f"truthfulqa takes no argument, got {arg!r}")
    c = load("rm_jax:base")
    c.name = "truthfulqa"
    c.data.train = "truthfulqa_judge:finetune_truth.jsonl.gz"
    c.data.valid_fraction = 0.1
    c.data.test_fraction = 0.2
    c.contract.tokenizer = "bpe:2048"
    c.contract.max_length = 256
    c.contract.max_response = 128
    c.contract.pooling = "mean"
    c.model.d_model = 128
    c.model.n_layers = 2
    c.model.dropout = 0.1
    c.loss.tie_weight = 0.0  # two true answers are not equally good, only both true
    c.batch.examples = 16
    c.batch.row_lengths = (256, 512)
    c.batch.chunk_tokens = 2048
    c.optim.learning_rate = 1e-3
    c.optim.weight_decay = 0.1
    c.train.duration = "4 epochs"
    c.train.eval_every = "1 epochs"
    c.train.save_every = "1 epochs"
    c.train.eval_examples = 0
    return c
