"""One step of TRL's GRPOTrainer on a random policy with a folder as its reward model.

    python grpo_step.py FOLDER PROMPTS OUT

PROMPTS has a JSON list of messages a line; OUT becomes {version, conversations,
rewards, logged}: what the policy answered, what the trainer's reward model gave for
each, and the mean that the trainer logged.
"""

import json
import sys
import tempfile

import torch
import transformers
import trl
from datasets import Dataset

GENERATIONS = 4  # of each prompt
NEW = 24  # tokens of an answer


def policy(tokenizer):
    """A Llama of two layers that knows nothing."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=2048,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return transformers.LlamaForCausalLM(config)


def main() -> None:
    """Runs."""
    folder, path, out = sys.argv[1:]
    with open(path, encoding="utf-8") as f:
        prompts = [json.loads(line) for line in f]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    conversations, rewards = [], []

    def note(prompts, completions, **_):
        conversations.extend(p + c for p, c in zip(prompts, completions, strict=True))
        return [0.0] * len(prompts)

    with tempfile.TemporaryDirectory() as scratch:
        trainer = trl.GRPOTrainer(
            model=policy(tokenizer),
            reward_funcs=[folder, note],
            args=trl.GRPOConfig(
                output_dir=scratch,
                per_device_train_batch_size=len(prompts) * GENERATIONS,
                num_generations=GENERATIONS,
                max_completion_length=NEW,
                max_steps=1,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                use_cpu=True,
                bf16=False,
                seed=0,
            ),
            train_dataset=Dataset.from_list([{"prompt": p} for p in prompts]),
            processing_class=tokenizer,
        )
        model = trainer.reward_funcs[0]
        model.register_forward_hook(
            lambda module, args, given: rewards.extend(given.logits[:, 0].tolist())
        )
        before = [p.detach().clone() for p in trainer.model.parameters()]
        trainer.train()
        moved = any(
            not torch.equal(a, b)
            for a, b in zip(before, trainer.model.parameters(), strict=True)
        )
        [logged] = [
            value
            for row in trainer.state.log_history
            for key, value in row.items()
            if key.startswith("rewards/")
            and key.endswith("/mean")
            and "note" not in key
        ]
    found = {
        "version": trl.__version__,
        "conversations": conversations,
        "rewards": rewards,
        "logged": logged,
        "moved": moved,
    }
    with open(out, "w", encoding="utf-8") as f:
        json.dump(found, f)


if __name__ == "__main__":
    main()
