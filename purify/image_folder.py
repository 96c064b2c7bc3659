"""Read a folder of class folders, or a zip of one, once; afterwards its pixels are mapped from a file, not held in memory."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from purify.picture import read_picture
from purify.progress_bar import progress_bar

__all__ = ["ImagePool", "read_image_folder"]

logger = logging.getLogger(__name__)

_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".png", ".apng", ".gif", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp"}
_PARTS = ("train", "val", "test")
_MEANT = {"training", "testing", "valid", "validation", "dev", "eval"}
"""What others call them."""
_READER = 2
"""Changes when the same file would be decoded otherwise, so that no older cache is taken for it."""


@dataclass(frozen=True)
class ImagePool:
    """All readable images of a folder."""

    pixels: Tensor
    """uint8 (N, C, H, W), mapped from the cache: only what is looked at is read, and memory does not grow with N."""
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
    source: Path,
    cache: Path,
    *,
    size: int | None = None,
    resize: int | None = None,
    class_list: Sequence[str] | None = None,
) -> ImagePool:
    """Decode ``[part/]class/file`` images below ``source``, a folder or a zip (read in place, never unpacked).

    Labels follow the alphabetical order of the class folders, or the order of ``class_list``. Pictures of any kind are read as
    :func:`purify.picture.read_picture` says; where all of them are grey, the images have one channel, else three.
    A file that cannot be read is named in a warning, skipped and listed in the result. One folder with everything in it, as zips
    often have, is looked into; hidden files are left out.

    Args:
        source: the folder or the zip.
        cache: folder for the decoded pixels, which serve the next time unless a file below ``source`` has changed.
        size: side in pixels to which images are cropped in the centre, after resizing; None: they must all have one size.
        resize: length in pixels to which the short side is resized (bicubic) before; None: ``size``.
        class_list: class folders in label order.

    Raises:
        ValueError: no image at all, images of several sizes without ``size``, a ``resize`` below ``size``, a class folder not in
            ``class_list``, or parts of other names (``valid``, ``training`` …).
    """
    if resize is not None and (size is None or resize < size):
        raise ValueError(f"expected a size to crop to, and a resize of at least that, got size {size}, resize {resize}")
    if size is not None and size < 1:
        raise ValueError(f"expected a size of at least one pixel, got {size}")
    if zipfile.is_zipfile(source):
        with _opened(source) as archive:
            entries = {e.filename: f"{e.file_size} {e.CRC}" for e in archive.infolist() if not e.is_dir()}
            return _read(source, entries, archive.read, cache, size, resize, class_list)
    if not source.is_dir():
        raise ValueError(f"expected a folder or a zip of one, got the file {source}")
    paths = {p.relative_to(source).as_posix(): p.stat() for p in source.rglob("*") if p.is_file()}
    entries = {name: f"{state.st_size} {state.st_mtime_ns}" for name, state in paths.items()}
    return _read(source, entries, lambda name: (source / name).read_bytes(), cache, size, resize, class_list)


def _opened(source: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(source)
    except zipfile.BadZipFile as error:
        raise ValueError(f"the zip {source} is damaged: {error}") from error


def _read(
    source: Path,
    entries: dict[str, str],
    read: Callable[[str], bytes],
    cache: Path,
    size: int | None,
    resize: int | None,
    class_list: Sequence[str] | None,
) -> ImagePool:
    """``entries``: name of each file, and what changes with its content."""
    files, top, others = _images(source, entries)
    nested = any(_in_part(Path(n).parts, top) for n in files)
    if not nested and all(Path(n).parts[top] in _PARTS for n in files):
        raise ValueError(f"{source} has pictures right inside {files[0].rpartition('/')[0]}; expected train/class/file")
    found = sorted({Path(n).parts[top + nested] for n in files})
    others += _without_pictures(source, entries, top, nested, found)
    classes = tuple(class_list) if class_list is not None else tuple(found)
    unknown = [c for c in found if c not in classes]
    if unknown:
        raise ValueError(f"{source} has class folders that the class list lacks: {', '.join(unknown[:5])}")

    state = [_READER, str(source.resolve()), size, resize, [[n, entries[n]] for n in files]]
    place = cache / hashlib.sha256(json.dumps(state).encode()).hexdigest()[:24]
    if not place.with_suffix(".json").exists():
        _decode_all(source, files, read, size, resize, place)
    index = json.loads(place.with_suffix(".json").read_text(encoding="utf-8"))
    pixels = np.memmap(place.with_suffix(".bytes"), np.uint8, "c", shape=(len(index["kept"]), *index["shape"]))
    labels = {c: i for i, c in enumerate(classes)}
    return ImagePool(
        pixels=torch.from_numpy(pixels).permute(0, 3, 1, 2)[:, : 1 if index["grey"] else 3],
        labels=torch.tensor([labels[Path(n).parts[top + nested]] for n in index["kept"]]),
        part_of=tuple(Path(n).parts[top] if nested else "" for n in index["kept"]),
        classes=classes,
        skipped=(*index["skipped"], *others),
    )


def _images(source: Path, names: Iterable[str]) -> tuple[list[str], int, list[str]]:
    """The pictures in class folders, in order; how many folders lie above classes and parts; and the pictures that lie elsewhere.

    A zip often holds one folder with everything in it, and a Mac's also pictures' shadows.
    """
    pictures = {n: Path(n).parts for n in sorted(names) if Path(n).suffix.lower() in _SUFFIXES}
    pictures = {n: parts for n, parts in pictures.items() if not any(p.startswith(".") or p == "__MACOSX" for p in parts)}
    files, top = [n for n, parts in pictures.items() if len(parts) >= 2], 0
    others = [f"{n}: in no class folder" for n, parts in pictures.items() if len(parts) < 2]
    if not files:
        raise ValueError(f"no images in {source}; expected class/file or train/class/file and test/class/file")
    while len({pictures[n][top] for n in files}) == 1 and pictures[files[0]][top] not in _PARTS:
        if any(len(pictures[n]) < top + 3 for n in files):
            break  # it is a class, the only one
        top += 1
    if meant := sorted({p for n in files if len(pictures[n]) >= top + 3 and (p := pictures[n][top]).lower() in _MEANT}):
        raise ValueError(f"{source} has the parts {', '.join(meant)}; call them {', '.join(_PARTS)}")
    inside = [n for n in files if _in_part(pictures[n], top)]
    if inside:
        others += [f"{n}: in no class folder of {', '.join(_PARTS)}" for n in files if not _in_part(pictures[n], top)]
    for line in others:
        logger.warning("left out of %s: %s", source, line)
    return inside or files, top, others


def _without_pictures(source: Path, names: Iterable[str], top: int, nested: bool, classes: Sequence[str]) -> list[str]:
    """Folders beside the ``classes`` with files in them, none of which is a picture: they get no label, which is said."""
    depth = top + nested
    around = [Path(n).parts for n in names if len(Path(n).parts) >= depth + 2 and (not nested or Path(n).parts[top] in _PARTS)]
    beside = {parts[depth] for parts in around if not any(p.startswith(".") or p == "__MACOSX" for p in parts)}
    empty = [f"{folder}: no picture in it" for folder in sorted(beside - set(classes))]
    for line in empty:
        logger.warning("left out of %s: %s", source, line)
    return empty


def _in_part(parts: Sequence[str], top: int) -> bool:
    """Whether a file lies in a class folder of one of the parts; otherwise a folder of a part's name is a class."""
    return parts[top] in _PARTS and len(parts) >= top + 3


def _decode_all(
    source: Path, files: list[str], read: Callable[[str], bytes], size: int | None, resize: int | None, place: Path
) -> None:
    """Write all pixels (N, H, W, 3) to ``place``.bytes, one picture at a time, and what they are to ``place``.json."""
    kept: list[str] = []
    skipped: list[str] = []
    shapes: set[tuple[int, ...]] = set()
    grey = True
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_suffix(f".{os.getpid()}.partial")
    try:
        with partial.open("wb") as pixels, progress_bar(total=len(files), label=f"reading {source.name}", unit="image") as bar:
            for name in files:
                bar.update()
                try:
                    picture = _decode(read(name), size, resize)
                except (OSError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:  # the last three: a zip's
                    skipped.append(f"{name}: {error}")
                    logger.warning("skipped unreadable image %s in %s: %s", name, source, error)
                    continue
                kept.append(name)
                shapes.add(picture.shape)
                grey &= bool((picture == picture[..., :1]).all())
                pixels.write(picture.tobytes())
        if not kept:
            raise ValueError(f"none of the {len(files)} images in {source} could be read; the first: {skipped[0]}")
        if len(shapes) > 1:
            some = ", ".join(f"{h}×{w}" for h, w, _ in sorted(shapes)[:4])
            raise ValueError(
                f"the images in {source} have {len(shapes)} sizes ({some}, …); give size= (--size) to resize and crop"
            )
        partial.replace(place.with_suffix(".bytes"))
    finally:
        partial.unlink(missing_ok=True)
    index = {"kept": kept, "skipped": skipped, "shape": shapes.pop(), "grey": grey}
    partial.write_text(json.dumps(index), encoding="utf-8")
    partial.replace(place.with_suffix(".json"))


def _decode(raw: bytes, size: int | None, resize: int | None) -> np.ndarray:
    picture = read_picture(raw).convert("RGB")
    if size is not None:
        side = resize or size
        picture = ImageOps.fit(picture, (side, side), Image.Resampling.BICUBIC)  # resize the short side, crop the centre
        before = (side - size) // 2
        picture = picture.crop((before, before, before + size, before + size))
    return np.asarray(picture)
