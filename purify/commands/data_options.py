"""Options that every command with images has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from purify.data import ImageSet, Split, load_dataset

__all__ = ["DataOptions"]


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Where images come from."""

    data_root: Path | None = None
    """Folder with the data sets; default: $PURIFY_DATA, else a cache folder with download."""
    size: int | None = None
    """For imagefolder: side in pixels to which images are resized and centre-cropped."""
    resize: int | None = None
    """For imagefolder: length of the short side before the crop; default: --size."""
    class_list: Path | None = None
    """For imagefolder: text file with one class folder's name a line, in label order."""

    def reading(self) -> dict[str, str]:
        """The options that decide how a folder is read, those that were given, as on the command line."""
        options = {"size": self.size, "resize": self.resize, "class-list": self.class_list}
        return {name: str(value) for name, value in options.items() if value is not None}

    def read_as(self, options: Mapping[str, str]) -> Self:
        """The command with what :meth:`reading` gave of another one."""
        size, resize = (int(options[name]) if name in options else None for name in ("size", "resize"))
        return replace(
            self, size=size, resize=resize, class_list=Path(options["class-list"]) if "class-list" in options else None
        )

    def load(self, name: str, split: Split) -> ImageSet:
        """One split of a data set, found as these options say."""
        return load_dataset(name, split, data_root=self.data_root, size=self.size, resize=self.resize, class_list=self.class_list)
