"""A small network for evidence drawn from masks, in the place of DeepLab-v2 on photographs."""

from torch import Tensor, nn


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
