"""Places in the tables of counts for the classes that are counted, where they are few.

Of the 21 classes of Pascal VOC a batch shows some; the others are not averaged (Sec. 3.1, Eq. 13),
so their errors need no counts and no gains.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Slots(NamedTuple):
    """Where only some classes are counted: their places in the tables.

    There is one place more, the last, for the labels of all other classes; nobody reads it.
    """

    of_class: Tensor
    """(C,) int64 place of each class."""
    classes: Tensor
    """(S - 1,) int64 the counted classes, in the order of their places."""

    @classmethod
    def of(cls, counted: list[int], num_classes: int, device: torch.device) -> "Slots | None":
        """Places for the counted classes; None where none, all or nearly all are counted."""
        if not counted or 4 * len(counted) > 3 * num_classes:
            return None
        classes = torch.tensor(counted, dtype=torch.int64, device=device)
        of_class = torch.full((num_classes,), len(counted), dtype=torch.int64, device=device)
        of_class[classes] = torch.arange(len(counted), device=device)
        return cls(of_class, classes)

    def places(self) -> int:
        """S."""
        return len(self.classes) + 1


def places_of(labels: Tensor, slots: Slots | None) -> Tensor:
    """(B, P) place of each pixel's label in the tables."""
    return labels if slots is None else slots.of_class[labels]
