"""A small tree in the layout of Cityscapes, and an experiment that runs on it in seconds."""

from pathlib import Path

import numpy as np
from PIL import Image

IDS = (7, 8, 11, 21, 23, 24, 26, 33, 0, 4)
"""Label ids that occur: eight scored classes, three of them with instances, and two void ids."""
INSTANCES = (24, 26, 33)
EXPERIMENT = """
experiment: tiny-streets
kind: training
title: tiny
section: none
claim: none
cost: seconds
seeds: [0]
batch_sizes: [2, 3]
recipe:
  data: {name: cityscapes, size: [24, 32], flip: true}
  model: {name: enet}
  training: {iterations: 6, lr: 1.0e-3, validate_every: 3, checkpoint_every: 2}
  evaluation: {examples: 2}
variants:
  weighted-cross-entropy:
    batch_sizes: [3]
    loss: {terms: {cross_entropy: 1.0}, class_weights: enet}
  lovasz-softmax: {loss: {terms: {lovasz_softmax: 1.0}}}
  lovasz-softmax-equibatch:
    batch_sizes: [3]
    data: {equibatch: true}
    loss: {terms: {lovasz_softmax: 1.0}}
profiles:
  paper: {scale: paper, about: official sizes}
  demo: {scale: demo, about: small}
"""


def write_cityscapes(root: Path, images: int = 4, labelled_test: bool = False) -> Path:
    """``root/cityscapes`` with ``images`` pictures of 48x64 per split; returns ``root``."""
    generator = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for number in range(images):
            city = ("here", "there")[number % 2]
            blocks = generator.integers(0, len(IDS), (6, 8)).repeat(8, 0).repeat(8, 1)
            labels = np.array(IDS, dtype=np.uint8)[blocks]
            if split == "test" and not labelled_test:
                labels = np.full_like(labels, 3)  # "out of roi", as in the official test set
            columns = np.arange(64) // 16
            things = np.isin(labels, INSTANCES) & (columns > 0)
            instances = np.where(things, labels.astype(int) * 1000 + columns, labels)
            noise = generator.integers(0, 40, (48, 64, 3))
            colours = np.stack([blocks * 20, 200 - blocks * 15, blocks * 50 % 190], axis=-1) + noise
            name = f"{city}_000000_{number:06d}"
            photographs = root / "cityscapes" / "leftImg8bit" / split / city
            masks = root / "cityscapes" / "gtFine" / split / city
            for folder in (photographs, masks):
                folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(colours.astype(np.uint8)).save(photographs / f"{name}_leftImg8bit.png")
            Image.fromarray(labels).save(masks / f"{name}_gtFine_labelIds.png")
            Image.fromarray(instances.astype(np.uint16)).save(
                masks / f"{name}_gtFine_instanceIds.png"
            )
    return root
