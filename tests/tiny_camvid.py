"""A small CamVid in the real layout, and an experiment that runs on it in seconds."""

from pathlib import Path

import numpy as np
from PIL import Image

EXPERIMENT = """
experiment: tiny
kind: training
title: tiny
section: none
claim: none
cost: seconds
seeds: [0]
batch_sizes: [2]
recipe:
  data: {name: camvid, size: [24, 32], flip: true}
  model: {name: enet}
  training: {iterations: 12, lr: 1.0e-3, validate_every: 4, checkpoint_every: 2}
variants:
  weighted-cross-entropy: {loss: {terms: {cross_entropy: 1.0}, class_weights: enet}}
  lovasz-softmax: {loss: {terms: {lovasz_softmax: 1.0}}}
profiles:
  paper: {scale: paper, about: small}
  demo: {scale: demo, about: smaller, recipe: {training: {iterations: 4}}}
"""


def write_camvid(root: Path, images: int = 5) -> Path:
    """``root/camvid`` with ``images`` pictures of 24x32 per split: blocks of colour by class."""
    generator = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        photographs, masks = root / "camvid" / split, root / "camvid" / f"{split}annot"
        photographs.mkdir(parents=True)
        masks.mkdir()
        for number in range(images):
            labels = generator.integers(0, 12, (3, 4)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
            noise = generator.integers(0, 40, (24, 32, 3))
            colours = np.stack([labels * 18, 200 - labels * 15, labels * 7 % 90], axis=-1) + noise
            Image.fromarray(colours.astype(np.uint8)).save(photographs / f"{number}.png")
            Image.fromarray(labels).save(masks / f"{number}.png")
    return root


def write_experiment(folder: Path, text: str = EXPERIMENT) -> Path:
    """The experiment file."""
    path = folder / "tiny.yaml"
    path.write_text(text)
    return path
