"""Units that see the whole image and write on all of it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["GlobalUnits"]


class GlobalUnits(nn.Module):
    """The part of a code that has one position for the whole image: what it shows, beside the local units' how it looks.

    Analysis: features of a trunk, averaged over the image, then linear and batch-normalised. Synthesis: Σ_k z_k A_k, where each
    atom A_k is a picture of unit norm as large as the image. In front of a classifier that is easily fooled, such patterns are
    what makes a decision stand: an attack must first turn the code, and the classifier reads the pattern before the detail
    (the same idea for objects: Salman et al. 2021, «Unadversarial examples»).

    Args:
        features: channels F of the trunk.
        units: how many, G.
        channels: of the image, C.
        side: of the atoms, in pixels. For images of another size the pattern is resized.
    """

    def __init__(self, features: int, units: int, channels: int, side: int) -> None:
        super().__init__()
        self.analysis = nn.Linear(features, units, bias=False)
        self.norm = nn.BatchNorm1d(units)
        self.atoms = nn.Parameter(
            F.normalize(torch.randn(units, channels * side * side), dim=1).view(units, channels, side, side)
        )

    def analyse(self, features: Tensor) -> Tensor:
        """Features (N, F, h, w) to (N, G), of either sign."""
        out: Tensor = self.norm(self.analysis(features.mean((2, 3))))
        return out

    def synthesise(self, code: Tensor, size: tuple[int, int]) -> Tensor:
        """Code (N, G) to the pattern (N, C, H, W) of ``size`` = (H, W), of either sign."""
        atoms = self.atoms.flatten(1)
        scale = atoms.norm(dim=1).clamp(min=1e-12)  # the code is divided by it, not the atoms: they are far larger
        pattern: Tensor = ((code / scale) @ atoms).view(-1, *self.atoms.shape[1:])
        if pattern.shape[-2:] == size:
            return pattern
        return F.interpolate(pattern, size=size, mode="bilinear", align_corners=False)
