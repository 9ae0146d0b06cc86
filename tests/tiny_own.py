"""Small folders of one's own, to be read or to be wrong in one way."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def write_own(root: Path, masks: Mapping[str, np.ndarray], **files: str) -> Path:
    """A folder with ``images`` and ``masks``; ``classes_txt`` and so on are its other files."""
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    generator = np.random.default_rng(0)
    for name, mask in masks.items():
        photograph = generator.integers(0, 256, (*mask.shape[:2], 3), np.uint8)
        Image.fromarray(photograph).save(root / "images" / f"{name}.png")
        Image.fromarray(mask).save(root / "masks" / f"{name}.png")
    for name, text in files.items():
        (root / name.replace("_", ".")).write_text(text)
    return root


def drawn_masks(
    count: int, values: tuple[int, ...] = (0, 255), seed: int = 0
) -> dict[str, np.ndarray]:
    """Masks "m0", "m1", ... of 12x16 with these values, each in half of the masks but the first."""
    generator = np.random.default_rng(seed)
    masks = {}
    for number in range(count):
        shown = [v for v in values[1:] if generator.random() < 0.5]
        mask = generator.choice(np.array([values[0], *shown], np.uint8), (12, 16))
        masks[f"m{number}"] = mask
    return masks
