"""A rank's live part of a tensor that lies on several ranks."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class TensorShard:
    """A rectangle of a larger tensor.

    Attributes:
        tensor: The part, a view of this rank's memory: copying into it changes the whole.
        full_shape: Of the whole tensor, 1 or 2 dimensions.
        offsets: Where in the whole the part begins, a dimension each.
        is_copy: Whether another rank holds the same part, and saves it.
    """

    tensor: Tensor
    full_shape: tuple[int, ...]
    offsets: tuple[int, ...]
    is_copy: bool = False
