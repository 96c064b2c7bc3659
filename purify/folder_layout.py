"""Which files of a folder are pictures, of which class and which part: ``[part/]class/…/file``."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["FolderLayout", "find_layout"]

logger = logging.getLogger(__name__)

_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".png", ".apng", ".gif", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp"}
_SUFFIXES |= {".avif", ".heic", ".heif", ".jxl", ".tga"}  # of which Pillow may lack the decoder, which is then said
_PARTS = ("train", "val", "test")
_MEANT = re.compile(
    r"(seg[_ -])?(train(ing)?|test(ing)?|val(id(at(ion|e))?)?|dev(elopment)?|eval(uation)?)([_ -]?(sets?|data|images?|split))?"
)
"""What others call them, in lower case."""


@dataclass(frozen=True)
class FolderLayout:
    """Pictures by name, with what the folders above them say."""

    names: tuple[str, ...]
    """Of the pictures, in order."""
    classes: tuple[str, ...]
    """The class folder of each picture."""
    parts: tuple[str, ...]
    """``train``, ``val`` or ``test`` for each picture, or an empty string where the folder has no such parts."""
    left_out: tuple[str, ...]
    """Pictures in no class folder and folders without a picture, with the reason."""


def find_layout(source: Path, names: Iterable[str]) -> FolderLayout:
    """Sort the files below a folder, by their names alone.

    One folder with everything in it, as zips often have, is looked into; hidden files, and the shadows of pictures that a Mac
    adds to its zips, are left out. Parts may be written in capitals. Folders that look like parts, but have no name of one, are
    taken for classes with a warning.

    Args:
        source: what to call the folder in messages.
        names: of all files below it, with ``/`` between the folders.

    Raises:
        ValueError: no picture in a class folder, or parts of other names (``valid``, ``training`` …).

    >>> layout = find_layout(Path("pets"), ["Train/cat/1.jpg", "Test/cat/2.jpg", "Test/dog/3.png", "Test/readme.txt"])
    >>> layout.parts, layout.classes
    (('test', 'test', 'train'), ('cat', 'dog', 'cat'))
    """
    split = {name: Path(name).parts for name in sorted(names)}
    split = {n: parts for n, parts in split.items() if not any(p.startswith(".") or p == "__MACOSX" for p in parts)}
    pictures = {n: parts for n, parts in split.items() if Path(n).suffix.lower() in _SUFFIXES}
    files, top = [n for n, parts in pictures.items() if len(parts) >= 2], 0
    others = [f"{n}: in no class folder" for n, parts in pictures.items() if len(parts) < 2]
    if not files:
        raise ValueError(f"no images in {source}; expected class/file or train/class/file and test/class/file")
    while len({pictures[n][top] for n in files}) == 1 and not _is_part(pictures[files[0]][top]):
        if any(len(pictures[n]) < top + 3 for n in files):
            break  # it is a class, the only one
        top += 1

    def in_part(parts: Sequence[str]) -> bool:
        """In a class folder of one of the parts; otherwise a folder of a part's name is a class."""
        return len(parts) >= top + 3 and _is_part(parts[top])

    around = {pictures[n][top] for n in files if len(pictures[n]) >= top + 3}
    if meant := sorted(name for name in around if not _is_part(name) and _MEANT.fullmatch(name.lower())):
        raise ValueError(f"{source} has the parts {', '.join(meant)}; call them {', '.join(_PARTS)}")
    inside = [n for n in files if in_part(pictures[n])]
    if inside:
        others += [f"{n}: in no class folder of {', '.join(_PARTS)}" for n in files if not in_part(pictures[n])]
    elif all(_is_part(pictures[n][top]) for n in files):
        raise ValueError(f"{source} has pictures right inside {files[0].rpartition('/')[0]}; expected train/class/file")
    depth, kept = top + bool(inside), inside or files
    classes = tuple(pictures[n][depth] for n in kept)
    beside = {p[depth] for p in split.values() if len(p) >= depth + 2 and (not inside or in_part(p))} - set(classes)
    empty = [f"{folder}: no picture in it" for folder in sorted(beside)]
    _warn(source, others)
    _warn(source, empty)
    if not inside:
        _doubt(source, [pictures[n] for n in kept], depth)
    parts = tuple(pictures[n][top].lower() if inside else "" for n in kept)
    return FolderLayout(tuple(kept), classes, parts, (*others, *empty))


def _is_part(name: str) -> bool:
    return name.lower() in _PARTS


def _warn(source: Path, lines: Sequence[str]) -> None:
    """A few lines in full; of many the first, and their number."""
    for line in lines[:3]:
        logger.warning("left out of %s: %s", source, line)
    if len(lines) > 3:
        logger.warning("left out of %s: %d more of this kind", source, len(lines) - 3)


def _doubt(source: Path, pictures: Sequence[tuple[str, ...]], depth: int) -> None:
    """Class folders that all hold the same folders, and no picture beside them, are more likely parts of some other name."""
    inner: dict[str, set[str]] = defaultdict(set)
    for parts in pictures:
        inner[parts[depth]].add(parts[depth + 1] if len(parts) > depth + 2 else "")
    folders = next(iter(inner.values()))
    if len(inner) > 1 and len(folders) > 1 and "" not in folders and all(other == folders for other in inner.values()):
        logger.warning(
            "%s: the folders %s are taken for classes, though each of them holds the folders %s; if those are the classes, "
            "call the folders above them %s",
            source,
            ", ".join(sorted(inner)[:5]),
            ", ".join(sorted(folders)[:5]),
            ", ".join(_PARTS),
        )
