"""Read a folder of class folders, or a zip of one, once; afterwards its pixels are mapped from a file, not held in memory."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from purify.folder_layout import find_layout
from purify.picture import read_picture
from purify.progress_bar import progress_bar

__all__ = ["ImagePool", "read_image_folder"]

logger = logging.getLogger(__name__)

_READER = 2
"""Changes when the same file would be decoded otherwise, so that no older cache is taken for it."""
_KEPT = (".bytes", ".json")
"""Of each decoded folder: its pixels, and what they are."""
_SHOWN = 3
"""So many unreadable files are each named in a warning; of more, their number."""


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
    A file that cannot be read is skipped, and listed in the result; the first few are named in warnings. Which files are pictures
    of which class and part, :func:`purify.folder_layout.find_layout` says. Links to folders are followed. What an earlier state
    of the same folder left in ``cache`` is removed.

    Args:
        source: the folder or the zip.
        cache: folder for the decoded pixels, which serve the next time unless a file below ``source`` has changed.
        size: side in pixels to which images are cropped in the centre, after resizing; None: they must all have one size.
        resize: length in pixels to which the short side is resized (bicubic) before; None: ``size``.
        class_list: class folders in label order.

    Raises:
        ValueError: no image at all, pictures that differ in size without ``size``, a ``resize`` below ``size``, a class folder
            not in ``class_list``, parts of other names (``valid``, ``training`` …), or a ``cache`` that cannot be written.
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
    paths = {path.relative_to(source).as_posix(): state for path, state in _files(source)}
    entries = {name: f"{state.st_size} {state.st_mtime_ns}" for name, state in paths.items()}
    return _read(source, entries, lambda name: (source / name).read_bytes(), cache, size, resize, class_list)


def _opened(source: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(source)
    except zipfile.BadZipFile as error:
        raise ValueError(f"the zip {source} is damaged: {error}") from error


def _files(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[tuple[Path, os.stat_result]]:
    """All files below that are not hidden, through links too, but not round in a circle."""
    real = folder.resolve()
    if real in above:
        return
    try:
        entries = list(os.scandir(folder))
    except PermissionError as error:  # a disk's lost+found
        logger.warning("left out: the folder %s cannot be read: %s", folder, error)
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _files(Path(entry.path), above | {real})
        elif entry.is_file():
            yield Path(entry.path), entry.stat()


def _forget_older(place: Path, of_source: str) -> None:
    """Remove what was decoded of the source in an earlier state; what another process holds open or still writes stays."""
    for path in sorted(place.parent.glob(f"{of_source}-*")):
        if path.stem != place.name and path.suffix in _KEPT:
            with contextlib.suppress(OSError):
                path.unlink()


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
    layout = find_layout(source, entries)
    found = sorted(set(layout.classes))
    classes = tuple(class_list) if class_list is not None else tuple(found)
    unknown = [c for c in found if c not in classes]
    if unknown:
        raise ValueError(f"{source} has class folders that the class list lacks: {', '.join(unknown[:5])}")

    about, state = [_READER, str(source.resolve()), size, resize], [[n, entries[n]] for n in layout.names]
    of_source, as_it_is = (hashlib.sha256(json.dumps(one).encode()).hexdigest()[:16] for one in (about, state))
    place = cache / f"{of_source}-{as_it_is}"
    if not all(place.with_suffix(suffix).exists() for suffix in _KEPT):
        _decode_all(source, layout.names, read, size, resize, place)
        _forget_older(place, of_source)
    index = json.loads(place.with_suffix(".json").read_text(encoding="utf-8"))
    pixels = np.memmap(place.with_suffix(".bytes"), np.uint8, "c", shape=(len(index["kept"]), *index["shape"]))
    number = {c: i for i, c in enumerate(classes)}
    labels = {n: number[c] for n, c in zip(layout.names, layout.classes, strict=True)}
    part_of = dict(zip(layout.names, layout.parts, strict=True))
    return ImagePool(
        pixels=torch.from_numpy(pixels).permute(0, 3, 1, 2)[:, : 1 if index["grey"] else 3],
        labels=torch.tensor([labels[n] for n in index["kept"]]),
        part_of=tuple(part_of[n] for n in index["kept"]),
        classes=classes,
        skipped=(*index["skipped"], *layout.left_out),
    )


def _decode_all(
    source: Path, files: Sequence[str], read: Callable[[str], bytes], size: int | None, resize: int | None, place: Path
) -> None:
    """Write all pixels (N, H, W, 3) to ``place``.bytes, one picture at a time, and what they are to ``place``.json."""
    kept: list[str] = []
    skipped: list[str] = []
    shapes: set[tuple[int, ...]] = set()
    grey = True
    partial = place.with_suffix(f".{os.getpid()}.partial")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
    except OSError as error:
        raise ValueError(
            f"decoded pictures cannot be kept in {place.parent}: {error}; PURIFY_CACHE names another folder"
        ) from error
    try:
        with partial.open("wb") as pixels, progress_bar(total=len(files), label=f"reading {source.name}", unit="image") as bar:
            for name in files:
                bar.update()
                try:
                    picture = _decode(read(name), size, resize)
                except (OSError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:  # the last three: a zip's
                    skipped.append(f"{name}: {error}")
                    if len(skipped) <= _SHOWN:
                        logger.warning("skipped unreadable image %s in %s: %s", name, source, error)
                    continue
                kept.append(name)
                shapes.add(picture.shape)
                if len(shapes) > 1:  # at once, not after gigabytes
                    some = " and ".join(f"{h}×{w}" for h, w, _ in sorted(shapes))
                    raise ValueError(f"the images in {source} differ in size ({some}); give size= (--size) to resize and crop")
                grey &= bool((picture == picture[..., :1]).all())
                pixels.write(picture.tobytes())
        if len(skipped) > _SHOWN:
            logger.warning("skipped %d more unreadable images in %s", len(skipped) - _SHOWN, source)
        if not kept:
            raise ValueError(f"none of the {len(files)} images in {source} could be read; the first: {skipped[0]}")
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
