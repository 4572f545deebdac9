"""RewardBench's own command line on a machine without a GPU: its flags are these.

It says .to("cuda") whatever there is; that one word is taken as "cpu".
"""

from transformers.tokenization_utils_base import BatchEncoding

_to = BatchEncoding.to


def _on_cpu(self, device=None, **more):
    return _to(self, "cpu" if device == "cuda" else device, **more)


BatchEncoding.to = _on_cpu

if __name__ == "__main__":
    from rewardbench.rewardbench import main

    main()
