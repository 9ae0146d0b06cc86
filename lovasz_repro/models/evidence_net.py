"""A small network for evidence drawn from masks, in the place of DeepLab-v2 on photographs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from lovasz_repro.errors import UserError
from lovasz_repro.host.files import write_durably
from lovasz_repro.models.snapshot_file import ordered


class EvidenceNet(nn.Module):
    """One 3x3 convolution, a linear classifier: a point is judged by the evidence around it.

    It answers on the grid on which it is given evidence, DeepLab's output grid. The convex losses
    are convex in its weights.

    Arguments:
        num_classes: channels of the evidence and of the logits, 21 for Pascal VOC.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.classifier = nn.Conv2d(num_classes, num_classes, kernel_size=3, padding=1)

    def forward(self, evidence: Tensor) -> Tensor:
        """Evidence (B, num_classes, h, w), float, to logits (B, num_classes, h, w)."""
        logits: Tensor = self.classifier(evidence)
        return logits


def save_evidence_net(model: nn.Module, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write a snapshot that `load_evidence_net` reads, whole or not at all."""
    header = {
        key: json.dumps(value) if isinstance(value, tuple) else str(value)
        for key, value in metadata.items()
    } | {"architecture": "evidence-net"}
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    write_durably(path, ordered(safetensors.torch.save(tensors, header)))


def load_evidence_net(model: EvidenceNet, path: Path) -> None:
    """Give a network the weights in a file.

    Raises:
        UserError: unreadable, or of another network.
    """
    try:
        model.load_state_dict(safetensors.torch.load_file(path))
    except (OSError, safetensors.SafetensorError, RuntimeError) as error:
        problem = " ".join(str(error).split())[:200]
        raise UserError(f"weights {path}: not of this evidence-net ({problem}).") from None
