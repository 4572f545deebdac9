"""What a file or folder of weights holds: a config, and tensors not read yet."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class WeightsError(ValueError):
    """Weights that cannot be used: names the file and the tensor, and says why."""


class Tensor(NamedTuple):
    """A tensor that is not read yet.

    Attributes:
      shape: of it.
      dtype: as the file says it: "F32", "BF16", "Q4_1", ...
      read: its numbers, finite ones; nothing is kept.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


class Source(NamedTuple):
    """Weights in the words of Hugging Face.

    Attributes:
      where: for messages.
      config: as in a config.json.
      tensors: name as transformers has it -> tensor.
      tokenizer: () -> the tokenizer beside the weights; None where there is none.
    """

    where: str
    config: dict[str, Any]
    tensors: Mapping[str, Tensor]
    tokenizer: "Callable[[], PreTrainedTokenizerFast] | None"
