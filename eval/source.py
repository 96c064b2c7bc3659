"""Images that are in memory already, for the judge, which takes them a batch at a time."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from purify.images import check_images, check_labels

__all__ = ["TensorImages"]


@dataclass(frozen=True)
class TensorImages:
    """Images that are in memory already.

    Raises:
        TypeError, ValueError: see ``purify.images.check_images`` and ``check_labels``; or no images at all.
    """

    images: Tensor
    """(N, C, H, W) in [0, 1]."""
    labels: Tensor
    """(N,)."""

    def __post_init__(self) -> None:
        check_images(self.images)
        check_labels(self.labels, self.images)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images and labels at ``indices``."""
        return self.images[indices], self.labels[indices].long()
