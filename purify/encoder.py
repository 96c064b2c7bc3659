"""The convolutional trunks of deep encoders: images to features, from which the code is read."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["PyramidTrunk", "ResidualBlock"]


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(relu(x)))), 3×3, without normalisation layers (a purifier sees one image at a time)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)  # starts as the identity (Zhang, Dauphin & Ma 2019)
        nn.init.zeros_(self.second.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, h, w) to the same."""
        out: Tensor = x + self.second(F.relu(self.first(F.relu(x))))
        return out


class _NormalisedBlock(nn.Module):
    """x + conv(relu(bn(conv(relu(bn(x)))))), 3×3 (He et al. 2016, «Identity mappings»)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        nn.init.zeros_(self.second.weight)  # starts as the identity; the ReLU before it passes gradients from the first step

    def forward(self, x: Tensor) -> Tensor:
        inner = self.first(F.relu(self.norm1(x)))
        out: Tensor = x + self.second(F.relu(self.norm2(inner)))
        return out


class PyramidTrunk(nn.Module):
    """Features at three scales, joined from the coarsest up (Lin et al. 2017): what an image shows decides how it is rebuilt.

    For a code at stride s: ``depth`` residual blocks at s/2 with ``width`` channels, as many at s with twice that, and at 2s with
    four times; then the coarse features are added to those at s. Batch normalisation throughout, whose statistics are fixed in
    eval mode: each image is then purified by itself.

    Images (N, C, H, W), H and W multiples of s, to features (N, 2·width, H/s, W/s), not negative, and the coarse ones,
    (N, 4·width, ⌈H/2s⌉, ⌈W/2s⌉), likewise.
    """

    def __init__(self, channels: int, width: int, depth: int, stride: int) -> None:
        super().__init__()
        half, fine, coarse = stride // 2, 2 * width, 4 * width
        self.coarse = coarse
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width // 2, 3, padding=1, bias=False),
            nn.BatchNorm2d(width // 2),
            nn.ReLU(),
            nn.Conv2d(width // 2, width, 2 * half, half, half // 2, bias=False),
        )
        self.before = nn.Sequential(*(_NormalisedBlock(width) for _ in range(depth)))
        self.down = _halve(width, fine)
        self.here = nn.Sequential(*(_NormalisedBlock(fine) for _ in range(depth)))
        self.down_again = _halve(fine, coarse)
        self.beyond = nn.Sequential(*(_NormalisedBlock(coarse) for _ in range(depth)), nn.BatchNorm2d(coarse), nn.ReLU())
        self.up = nn.Conv2d(coarse, fine, 1, bias=False)
        self.join = nn.Sequential(nn.BatchNorm2d(fine), nn.ReLU())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images, whose mean may be anywhere, to joined and coarse features."""
        here = self.here(self.down(self.before(self.stem(images))))  # (N, 2w, H/s, W/s)
        beyond = self.beyond(self.down_again(here))  # (N, 4w, ⌈H/2s⌉, ⌈W/2s⌉)
        joined: Tensor = self.join(here + F.interpolate(self.up(beyond), size=here.shape[-2:], mode="nearest"))
        return joined, beyond


def _halve(width: int, wider: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, wider, 3, 2, 1, bias=False))
