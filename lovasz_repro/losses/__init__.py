"""The losses of the paper as a library: importable without the rest of the project.

* :func:`lovasz_softmax` (Eq. 11-13) for several classes, :func:`lovasz_hinge` (Eq. 10) for two;
* :func:`lovasz_extension` (Eq. 8-9) for any set function of counts, such as :class:`JaccardLoss`,
  and :func:`check_submodular` for your own;
* the losses they are compared with, and :func:`weighted_sum` to combine them;
* module forms of all, and :class:`AccumulationWindow` for gradient accumulation.

Inside: ``lovasz.py`` and ``extension.py`` are what people call. Gains come from sorted errors
(``extension.py``) or, derived in ``histogram.py``, from counts in its bins. ``lovasz.py`` takes
them through the softmax, with the functions of ``plain.py``, which says how, or on a CPU of
``compiled.py`` with ``kernels.py`` (Numba). ``device.py`` with ``device_kernels.py`` (Triton) does
all of it on a GPU. ``backends.py`` chooses, and ``ranks.py`` joins processes and micro-batches.
"""

from .baselines import (
    binary_cross_entropy,
    cross_entropy,
    hinge,
    soft_dice,
    soft_iou,
    soft_jaccard,
    weighted_sum,
)
from .extension import lovasz_extension
from .lovasz import lovasz_hinge, lovasz_softmax
from .modules import (
    BinaryCrossEntropy,
    CrossEntropy,
    Hinge,
    LovaszHinge,
    LovaszSoftmax,
    SoftDice,
    SoftIoU,
    SoftJaccard,
    WeightedSum,
)
from .ranks import AccumulationWindow
from .set_functions import (
    CountFunction,
    Counts,
    HammingLoss,
    JaccardLoss,
    SetFunction,
    TverskyLoss,
    check_submodular,
)

__all__ = [
    "AccumulationWindow",
    "BinaryCrossEntropy",
    "CountFunction",
    "Counts",
    "CrossEntropy",
    "HammingLoss",
    "Hinge",
    "JaccardLoss",
    "LovaszHinge",
    "LovaszSoftmax",
    "SetFunction",
    "SoftDice",
    "SoftIoU",
    "SoftJaccard",
    "TverskyLoss",
    "WeightedSum",
    "binary_cross_entropy",
    "check_submodular",
    "cross_entropy",
    "hinge",
    "lovasz_extension",
    "lovasz_hinge",
    "lovasz_softmax",
    "soft_dice",
    "soft_iou",
    "soft_jaccard",
    "weighted_sum",
]
