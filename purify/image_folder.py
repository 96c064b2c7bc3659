"""Read a folder of class folders, or a zip of one, into memory."""

from __future__ import annotations

import json
import logging
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from purify.picture import read_picture

__all__ = ["ImagePool", "read_image_folder"]

logger = logging.getLogger(__name__)

_SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}
_PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class ImagePool:
    """All readable images of a folder."""

    pixels: Tensor
    """uint8 (N, C, H, W)."""
    labels: Tensor
    """int64 (N,)."""
    part_of: tuple[str, ...]
    """For each image ``train``, ``val`` or ``test``, or an empty string where the folder has no such parts."""
    classes: tuple[str, ...]
    skipped: tuple[str, ...]
    """Files that could not be read, with the reason."""

    @property
    def parts(self) -> set[str]:
        """The parts that occur."""
        return set(self.part_of)


def read_image_folder(
    source: Path, *, size: int | None = None, class_list: Sequence[str] | None = None, cache: Path | None = None
) -> ImagePool:
    """Decode ``[part/]class/file`` images below ``source``, a folder or a zip (read in place, never unpacked).

    Labels follow the alphabetical order of the class folders, or the order of ``class_list``. Pictures of any kind are read as
    :func:`purify.picture.read_picture` says; where all of them are grey, the images have one channel, else three.
    A zip's decoded pixels are kept under ``cache`` for the next time. A file that cannot be read is named in a warning, skipped
    and listed in the result.

    Raises:
        ValueError: no image at all, images of several sizes without ``size``, or a class folder not in ``class_list``.
    """
    if zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            names = [n for n in archive.namelist() if not n.endswith("/")]
            return _read(source, names, archive.read, size, class_list, cache)
    if not source.is_dir():
        raise ValueError(f"expected a folder or a zip of one, got the file {source}")
    names = [str(p.relative_to(source).as_posix()) for p in source.rglob("*") if p.is_file()]
    return _read(source, names, lambda n: (source / n).read_bytes(), size, class_list, None)


def _read(
    source: Path,
    names: list[str],
    read: Callable[[str], bytes],
    size: int | None,
    class_list: Sequence[str] | None,
    cache: Path | None,
) -> ImagePool:
    files = sorted(n for n in names if Path(n).suffix.lower() in _SUFFIXES and len(Path(n).parts) >= 2)
    if not files:
        raise ValueError(f"no images in {source}; expected class/file or train/class/file and test/class/file")
    nested = any(Path(n).parts[0] in _PARTS and len(Path(n).parts) >= 3 for n in files)
    found = sorted({Path(n).parts[1 if nested else 0] for n in files})
    classes = tuple(class_list) if class_list is not None else tuple(found)
    unknown = [c for c in found if c not in classes]
    if unknown:
        raise ValueError(f"{source} has class folders that the class list lacks: {', '.join(unknown[:5])}")

    kept, skipped, pixels = _decode_all(source, files, read, size, cache)
    index = {c: i for i, c in enumerate(classes)}
    return ImagePool(
        pixels=pixels,
        labels=torch.tensor([index[Path(n).parts[1 if nested else 0]] for n in kept]),
        part_of=tuple(Path(n).parts[0] if nested else "" for n in kept),
        classes=classes,
        skipped=tuple(skipped),
    )


def _decode_all(
    source: Path, files: list[str], read: Callable[[str], bytes], size: int | None, cache: Path | None
) -> tuple[list[str], list[str], Tensor]:
    if cache is not None and cache.with_suffix(".json").exists():
        index = json.loads(cache.with_suffix(".json").read_text(encoding="utf-8"))
        return index["kept"], index["skipped"], load_file(cache.with_suffix(".safetensors"))["pixels"]
    kept: list[str] = []
    skipped: list[str] = []
    arrays: list[np.ndarray] = []
    for name in tqdm(files, desc=f"reading {source.name}", unit="image", disable=None, leave=False):
        try:
            arrays.append(_decode(read(name), size))
            kept.append(name)
        except (OSError, ValueError) as error:
            skipped.append(f"{name}: {error}")
            logger.warning("skipped unreadable image %s in %s: %s", name, source, error)
    if not arrays:
        raise ValueError(f"none of the {len(files)} images in {source} could be read; the first: {skipped[0]}")
    grey = all((a[..., 0] == a[..., 1]).all() and (a[..., 1] == a[..., 2]).all() for a in arrays)
    shapes = {a.shape[:2] for a in arrays}
    if len(shapes) > 1:
        some = ", ".join(f"{h}×{w}" for h, w in sorted(shapes)[:4])
        raise ValueError(f"the images in {source} have {len(shapes)} sizes ({some}, …); give size= (--size) to resize and crop")
    pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)[:, : 1 if grey else 3].contiguous()
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        partial = cache.with_suffix(f".{os.getpid()}.partial")
        save_file({"pixels": pixels}, partial)
        partial.replace(cache.with_suffix(".safetensors"))
        partial.write_text(json.dumps({"kept": kept, "skipped": skipped}), encoding="utf-8")
        partial.replace(cache.with_suffix(".json"))
    return kept, skipped, pixels


def _decode(raw: bytes, size: int | None) -> np.ndarray:
    picture = read_picture(raw).convert("RGB")
    if size is not None:
        picture = ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)  # resize the short side, crop the centre
    return np.asarray(picture)
