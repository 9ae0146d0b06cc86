"""ENet against OpenCV, which runs the same Torch7 file with code that shares nothing with ours."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lovasz_repro.models.enet import ENet
from lovasz_repro.models.snapshot import load_weights

cv2 = pytest.importorskip("cv2")
cv2.setNumThreads(1)

TOLERANCE = 2e-4  # scores reach 20, and float32 sums run in another order


def share_apart(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Share of pixels whose scores differ by more than the tolerance."""
    return float((np.abs(ours - theirs).max(axis=1) > TOLERANCE).mean())


def assert_agree(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Same scores everywhere but around a tie.

    Where two values of a pooling window are equal to rounding (about ten windows in a
    512x1024 image), the two implementations may pick different ones, and unpooling then moves
    one value by a pixel: some hundred pixels around it differ a little.
    """
    assert share_apart(ours, theirs) < 0.02
    assert np.abs(ours - theirs).max() < 0.5
    assert (ours.argmax(1) == theirs.argmax(1)).mean() > 0.9999


def opencv_scores(path: Path, images: np.ndarray) -> np.ndarray:
    network = cv2.dnn.readNetFromTorch(str(path))
    network.setInput(images)
    return network.forward()


def our_scores(model: ENet, images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model.eval()(torch.from_numpy(images)).numpy()


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(3).random((1, 3, height, width), dtype=np.float32)


def photograph(camvid: Path, height: int, width: int) -> np.ndarray:
    path = sorted((camvid / "test").iterdir())[120]
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))
    return pixels.transpose(2, 0, 1)[None].astype(np.float32) / 255


@pytest.mark.parametrize("decoder", ["PReLU", "ReLU"])
def test_random_network_agrees(enet_file, torch7, tmp_path: Path, decoder: str) -> None:
    path = tmp_path / "random.net"
    path.write_bytes(torch7(enet_file(5, 7, decoder).root))
    model = load_weights(path).build()
    assert model.decoder == decoder.lower()
    images = noise(64, 96)
    ours, theirs = our_scores(model, images), opencv_scores(path, images)
    assert ours.shape == (1, 7, 64, 96)
    assert float(np.abs(theirs).max()) > 1  # the network says something
    assert_agree(ours, theirs)


def test_wrong_dropout_convention_is_seen(random_enet: Path) -> None:
    images = noise(64, 64)
    weights = load_weights(random_enet)
    model = ENet(7, dropout_convention="pytorch")
    model.load_state_dict(weights.tensors)
    assert share_apart(our_scores(model, images), opencv_scores(random_enet, images)) > 0.9


def test_released_network_agrees_on_a_photograph(enet_weights: Path, camvid_root: Path) -> None:
    images = photograph(camvid_root, 256, 512)
    model = load_weights(enet_weights).build()
    assert_agree(our_scores(model, images), opencv_scores(enet_weights, images))


def test_released_network_needs_torch7_dropout(enet_weights: Path, camvid_root: Path) -> None:
    images = photograph(camvid_root, 128, 192)
    model = ENet(20, dropout_convention="pytorch")
    model.load_state_dict(load_weights(enet_weights).tensors)
    assert share_apart(our_scores(model, images), opencv_scores(enet_weights, images)) > 0.9


def test_channels_last_gives_the_same_scores(random_enet: Path) -> None:
    images = noise(64, 96)
    model = load_weights(random_enet).build()
    expected = our_scores(model, images)
    last = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        scores = model.to(memory_format=torch.channels_last)(last)
    assert scores.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(scores.numpy(), expected, atol=1e-4, rtol=1e-4)
