"""Data sets by name, with deterministic splits: digits, mnist, fashion-mnist, cifar10, imagefolder:PATH.

Where to look: an explicit ``data_root``, else the environment variable ``PURIFY_DATA``, else a cache folder
(``PURIFY_CACHE``, by default ``~/.cache/purify``) with download.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol, get_args

import numpy as np
import torch
import torchvision
from torch import Tensor

from purify.image_folder import read_image_folder

__all__ = ["DATASETS", "DataNotFoundError", "ImageSet", "Split", "cache_folder", "file_stem", "load_dataset", "split_indices"]

Split = Literal["train", "val", "test"]
DATASETS = ("digits", "mnist", "fashion-mnist", "cifar10", "imagefolder:PATH")
SPLIT_SEED = 20_240_229
"""Seed of every split, so that «the test split» means the same images to everyone."""

_DIGITS_SHARES = (0.70, 0.05, 0.25)
_FOLDER_SHARES = (12 / 15, 1 / 15, 2 / 15)
_TORCHVISION = {
    "mnist": torchvision.datasets.MNIST,
    "fashion-mnist": torchvision.datasets.FashionMNIST,
    "cifar10": torchvision.datasets.CIFAR10,
}


class DataNotFoundError(FileNotFoundError):
    """The data set is known but not on this machine; the message says where it was looked for."""


class ImageSource(Protocol):
    """Labelled images by number; ``purify.load_dataset`` gives one."""

    def __len__(self) -> int:
        """How many."""
        ...

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images (n, C, H, W) in [0, 1] and labels (n,)."""
        ...


@dataclass(frozen=True)
class ImageSet:
    """Labelled images of one split, as bytes: in memory, or mapped from a file."""

    name: str
    """Name that the user gave, such as ``mnist``."""
    split: Split
    pixels: Tensor
    """uint8 (M, C, H, W); of a folder those of all splits."""
    labels: Tensor
    """int64 (N,)."""
    classes: tuple[str, ...]
    """Class names in the order of the labels."""
    skipped: tuple[str, ...] = ()
    """Files that could not be read."""
    rows: Tensor | None = None
    """int64 (N,): which of ``pixels`` are this split's, in order; None: all of them."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        _, c, h, w = self.pixels.shape
        return c, h, w

    def batch(self, indices: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Images as float32 (n, C, H, W) in [0, 1], and labels (n,), at ``indices``."""
        rows = indices if self.rows is None else self.rows[indices]
        return self.pixels[rows].contiguous().float().div_(255), self.labels[indices]

    def first(self, count: int | None) -> ImageSet:
        """The first ``count`` images (all of them for ``None`` or a larger number).

        Raises:
            ValueError: a negative number.
        """
        if count is not None and count < 0:
            raise ValueError(f"expected a number of images, got {count}")
        end = len(self) if count is None else min(count, len(self))
        if self.rows is None:
            return replace(self, pixels=self.pixels[:end], labels=self.labels[:end])
        return replace(self, labels=self.labels[:end], rows=self.rows[:end])

    def with_channels(self, channels: int) -> ImageSet:
        """Grey images in so many equal channels, without a copy.

        Raises:
            ValueError: they are in colour.
        """
        if self.image_shape[0] != 1:
            raise ValueError(f"expected grey images, got {self.image_shape[0]} channels")
        return replace(self, pixels=self.pixels.expand(-1, channels, -1, -1))

    def joined(self, other: ImageSet) -> ImageSet:
        """These images and then the ``other`` set's, which must be of the same size and classes; called as this one is.

        Raises:
            ValueError: they are not.
        """
        if self.image_shape != other.image_shape or self.classes != other.classes:
            raise ValueError(
                f"only sets of the same image size and classes can be joined, got {self.image_shape} and {other.image_shape}, "
                f"{len(self.classes)} and {len(other.classes)} classes"
            )
        pixels = torch.cat([part.pixels if part.rows is None else part.pixels[part.rows] for part in (self, other)])
        return replace(self, pixels=pixels, labels=torch.cat([self.labels, other.labels]), rows=None)


def cache_folder() -> Path:
    """Folder for downloads and decoded archives: ``PURIFY_CACHE``, else ``~/.cache/purify``."""
    return Path(os.environ.get("PURIFY_CACHE") or Path.home() / ".cache" / "purify").expanduser()


def split_indices(labels: Tensor, shares: Sequence[float], seed: int = SPLIT_SEED) -> list[Tensor]:
    """Cut 0 … N − 1 into disjoint parts, each holding its share of every class; what is left over joins the last part.

    Where some class has fewer members than there are parts, or so few that a part would come out empty, the cut is made
    through all images at once.

    Args:
        labels: (N,).
        shares: for instance (0.7, 0.1, 0.2), which must sum to 1.
        seed: of the permutation.

    >>> [len(part) for part in split_indices(torch.arange(100) % 10, (0.7, 0.1, 0.2))]
    [70, 10, 20]
    """
    if abs(sum(shares) - 1) > 1e-9 or min(shares) < 0:
        raise ValueError(f"expected shares that are not negative and sum to 1, got {tuple(shares)}")
    generator = torch.Generator().manual_seed(seed)
    parts: list[list[Tensor]] = [[] for _ in shares]
    found, counts = torch.unique(labels, return_counts=True)
    strata = [(labels == label).nonzero().flatten() for label in found]
    ends_of = [[0, *(round(float(c) * int(n)) for c in np.cumsum(shares)[:-1]), int(n)] for n in counts]
    empty = any(share > 0 and all(ends[i] == ends[i + 1] for ends in ends_of) for i, share in enumerate(shares))
    if int(counts.min()) < len(shares) or empty:
        strata = [torch.arange(len(labels))]
        ends_of = [[0, *(round(float(c) * len(labels)) for c in np.cumsum(shares)[:-1]), len(labels)]]
    for members, ends in zip(strata, ends_of, strict=True):
        members = members[torch.randperm(len(members), generator=generator)]
        for part, start, end in zip(parts, ends, ends[1:], strict=False):
            part.append(members[start:end])
    joined = [torch.cat(part) for part in parts]
    return [part[torch.randperm(len(part), generator=generator)] for part in joined]


def load_dataset(
    name: str,
    split: Split,
    *,
    data_root: str | Path | None = None,
    size: int | None = None,
    resize: int | None = None,
    class_list: str | Path | None = None,
    download: bool = True,
) -> ImageSet:
    """Load one split of a data set.

    Splits: MNIST, Fashion-MNIST and CIFAR-10 keep their own test part, and a stratified tenth of the training part
    (5,000 of MNIST's 60,000: a twelfth) is held out for validation. A folder with ``train`` and ``test`` (optionally
    ``val``) inside is treated likewise; a folder of classes alone is cut 12 : 1 : 2 (750 photographs: 600, 50, 100), the digits
    70 : 5 : 25, both by class. The seed is fixed (``SPLIT_SEED``), so the parts never overlap and never change.

    Args:
        name: one of ``DATASETS``; for ``imagefolder:PATH``, PATH is a folder or a zip of one.
        split: ``train``, ``val`` or ``test``.
        data_root: where the files are; overrides ``PURIFY_DATA`` and the cache.
        size: side in pixels to which a folder's images are resized and centre-cropped; needed where they differ in size.
        resize: length to which the short side is resized before the crop; None: ``size``.
        class_list: text file with one class folder's name a line, in label order, for folders that lack some classes.
        download: whether the cache may be filled from the network.

    Raises:
        ValueError: unknown name or split, a folder that holds no such split, or an option of folders for another data set.
        DataNotFoundError: known, but not on this machine.

    >>> digits = load_dataset("digits", "test")
    >>> len(digits), digits.image_shape
    (450, (1, 8, 8))
    """
    if split not in get_args(Split):
        raise ValueError(f"unknown split {split!r}; known: {', '.join(get_args(Split))}")
    for_folders = {"size": size, "resize": resize, "class-list": class_list}
    given = [f"--{option}" for option, value in for_folders.items() if value is not None]
    if given and name in DATASETS and not name.startswith("imagefolder:"):
        raise ValueError(f"{' and '.join(given)}: for imagefolder:PATH alone; the images of {name} are taken as they are")
    if name == "digits":
        return _digits(split)
    if name in _TORCHVISION:
        return _torchvision(name, split, data_root, download)
    if name.startswith("imagefolder:"):
        return _image_folder(name, split, data_root, size, resize, class_list)
    raise ValueError(f"unknown data set {name!r}; known: {', '.join(DATASETS)}")


def file_stem(name: str) -> str:
    """A name that can be part of a file's name: ``imagefolder:some/place.zip`` becomes ``imagefolder-place``.

    >>> file_stem("a, before b")
    'a-before-b'
    """
    kind, _, path = name.partition(":")
    return re.sub(r"[^\w.]+", "-", f"{kind}-{Path(path).stem}" if path else kind)


def _digits(split: Split) -> ImageSet:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)  # 1,797 × 64, values 0 … 16
    pixels = torch.from_numpy(np.round(images * (255 / 16)).astype(np.uint8)).view(-1, 1, 8, 8)
    targets = torch.from_numpy(labels).long()
    chosen = _cut(targets, split, _DIGITS_SHARES)
    return ImageSet("digits", split, pixels[chosen], targets[chosen], tuple("0123456789"))


def _cut(labels: Tensor, split: Split, shares: tuple[float, float, float]) -> Tensor:
    """Indices of ``split`` in a pool that has no parts of its own."""
    return dict(zip(("train", "val", "test"), split_indices(labels, shares), strict=True))[split]


def _roots(data_root: str | Path | None) -> list[Path]:
    if data_root is not None:
        return [Path(data_root).expanduser()]
    return [Path(os.environ["PURIFY_DATA"]).expanduser()] if os.environ.get("PURIFY_DATA") else []


def _torchvision(name: str, split: Split, data_root: str | Path | None, download: bool) -> ImageSet:
    source = _TORCHVISION[name]
    given = _roots(data_root)
    candidates = [place for root in given for place in (root / name, root)]
    for place in [*candidates, *([] if given else [cache_folder()])]:
        try:
            parts = {train: source(root=place, train=train, download=False) for train in (True, False)}
            break
        except RuntimeError as error:
            if "not found" in str(error):  # torchvision's word for «not here»
                continue
            raise ValueError(f"{name} in {place} is damaged: {error}; remove it and get it again") from error
        except (ValueError, AssertionError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(f"{name} in {place} is damaged: {error}; remove it and get it again") from error
    else:
        if given or not download:
            looked = ", ".join(str(p) for p in candidates or [cache_folder()])
            raise DataNotFoundError(f"{name} is not here (looked in: {looked}); --data-root or PURIFY_DATA say where it is")
        try:
            parts = {train: source(root=cache_folder(), train=train, download=True) for train in (True, False)}
        except Exception as error:  # a closed network shows itself in many ways
            raise DataNotFoundError(f"{name} is not in {cache_folder()} and could not be downloaded: {error}") from error
    part = parts[split != "test"]
    pixels, labels = torch.as_tensor(part.data), torch.as_tensor(part.targets).long()
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
    if split != "test":
        held_out = 1 / 12 if name.endswith("mnist") else 1 / 10
        chosen = split_indices(labels, (1 - held_out, held_out))[split == "val"]
        pixels, labels = pixels[chosen], labels[chosen]
    return ImageSet(name, split, pixels, labels, tuple(part.classes))


def _class_names(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows' editors begin a file with a mark
    except UnicodeDecodeError as error:
        raise ValueError(f"the class list {path} is no text in UTF-8 ({error}): expected UTF-8, save it as that") from error
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"the class list {path} names {', '.join(twice[:5])} more than once")
    return names


def _image_folder(
    name: str,
    split: Split,
    data_root: str | Path | None,
    size: int | None,
    resize: int | None,
    class_list: str | Path | None,
) -> ImageSet:
    given = Path(name.removeprefix("imagefolder:")).expanduser()
    places = [given, *(root / given for root in _roots(data_root))]
    source = next((place for place in places if place.exists()), None)
    if source is None:
        raise DataNotFoundError(f"{name} is not here (looked for: {', '.join(map(str, places))})")
    names = None if class_list is None else _class_names(Path(class_list))
    pool = read_image_folder(source, cache_folder() / "decoded", size=size, resize=resize, class_list=names)
    if pool.parts == {""}:
        chosen = _cut(pool.labels, split, _FOLDER_SHARES)
    else:
        wanted = "train" if split == "val" and "val" not in pool.parts else split
        if wanted not in pool.parts:
            raise ValueError(f"{name} holds no {split} images; its parts are {', '.join(sorted(pool.parts))}")
        chosen = torch.tensor([i for i, part in enumerate(pool.part_of) if part == wanted])
        if split != "test" and "val" not in pool.parts:
            chosen = chosen[split_indices(pool.labels[chosen], (0.9, 0.1))[split == "val"]]
        else:  # a folder's order is by class: the first hundred must be a fair sample
            chosen = chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(SPLIT_SEED))]
    return ImageSet(name, split, pool.pixels, pool.labels[chosen], pool.classes, pool.skipped, chosen)
