"""Torchvision's images, read from small files in their true formats."""

from __future__ import annotations

import gzip
import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import datasets
from torchvision.transforms import CenterCrop

import sde_models as sm
from sde_models.data import LevelImages


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr("socket.getaddrinfo", refuse)


def idx(array: np.ndarray[Any, Any]) -> bytes:
    """A file of the MNIST kind: two zeros, the type, the dimensions, the sizes, the bytes."""
    sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def write_mnist(folder: Path, zipped: bool = False) -> tuple[Tensor, Tensor]:
    """Write seven training and three test images; return the former."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    kept = []
    for name, count in (("train", 7), ("t10k", 3)):
        images, labels = draw.integers(0, 256, (count, 28, 28)), draw.integers(0, 10, count)
        kept.append((torch.from_numpy(images).to(torch.uint8), torch.from_numpy(labels)))
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            path = folder / f"{name}-{kind}-ubyte{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(idx(array)) if zipped else idx(array))
    return kept[0]


LOADERS = [("MNIST", sm.data.mnist), ("FashionMNIST", sm.data.fashion_mnist)]


@pytest.mark.parametrize(("name", "load"), LOADERS)
def test_mnist_files_are_read(name: str, load: Callable[..., LevelImages], tmp_path: Path) -> None:
    images, labels = write_mnist(tmp_path / name / "raw")
    data = load(tmp_path)
    assert (len(data), len(load(tmp_path, train=False)), data.levels) == (7, 3, 256)
    assert len(data.classes) == 10
    for i in range(7):
        image, label = data[i]
        assert torch.equal(image, images[i][None])
        assert image.dtype == torch.uint8
        assert label == int(labels[i])


@pytest.mark.parametrize(("name", "load"), LOADERS)
def test_zipped_files_that_are_there_are_not_downloaded(
    name: str, load: Callable[..., LevelImages], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / name / "raw"
    images, _ = write_mnist(folder, zipped=True)
    kind = getattr(datasets, name)
    sums = [(file, md5(folder / file)) for file, _ in kind.resources]
    monkeypatch.setattr(kind, "resources", sums)
    assert torch.equal(load(tmp_path, download=True)[2][0], images[2][None])


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_cifar10(folder: Path) -> Tensor:
    """Write two images in each of five training batches, and two for testing."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    kept = []
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        pixels = draw.integers(0, 256, (2, 3072)).astype(np.uint8)
        kept.append(torch.from_numpy(pixels).reshape(2, 3, 32, 32))
        batch = {"data": pixels, "labels": [3, 7], "batch_label": name, "filenames": ["a", "b"]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    names = {"label_names": [f"class {i}" for i in range(10)], "num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(names, protocol=2))
    return torch.cat(kept[:5])


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Files of the CIFAR-10 kind, and their checksums in place of the published ones."""
    folder = tmp_path / "cifar-10-batches-py"
    images = write_cifar10(folder)
    for name in ("train_list", "test_list"):
        files = [[file, md5(folder / file)] for file, _ in getattr(datasets.CIFAR10, name)]
        monkeypatch.setattr(datasets.CIFAR10, name, files)
    meta = {**datasets.CIFAR10.meta, "md5": md5(folder / "batches.meta")}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    return images


def test_cifar10_files_are_read(cifar10: Tensor, tmp_path: Path) -> None:
    data = sm.data.cifar10(tmp_path)
    assert (len(data), len(sm.data.cifar10(tmp_path, train=False))) == (10, 2)
    assert data.classes[3] == "class 3"
    for i in range(10):
        image, label = data[i]
        assert torch.equal(image, cifar10[i])
        assert label == (3, 7)[i % 2]


@pytest.mark.usefixtures("cifar10")
def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(path.read_bytes() + b"!")
    with pytest.raises(FileNotFoundError, match=r"damaged: sm\.data\.cifar10\(root, download=True"):
        sm.data.cifar10(tmp_path)


def test_folders_of_images_are_read(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (4, 3, 5, 6), dtype=torch.uint8)
    for i, image in enumerate(images):
        folder = tmp_path / ("cat", "dog")[i // 2]
        folder.mkdir(exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    data = sm.data.image_folder(tmp_path)
    assert data.classes == ["cat", "dog"]
    for i in range(4):
        assert torch.equal(data[i][0], images[i])
        assert data[i][1] == i // 2
    assert sm.data.image_folder(tmp_path, CenterCrop(4))[0][0].shape == (3, 4, 4)
    assert repr(data) == "LevelImages(4 of ImageFolder)"


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_missing_files_raise_with_how_to_get_them(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"sm\.data\.{name}\(root, download=True\)"):
        getattr(sm.data, name)(tmp_path)


def test_missing_folders_raise_with_how_to_fill_them(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match="one folder for each class"):
            sm.data.image_folder(root)
