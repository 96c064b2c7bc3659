"""The Jacobian of a purifier at an image: gains along directions, singular values, and the shape of its action."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from purify.attacks.gradient import Model

__all__ = ["JacobianSummary", "NotDifferentiableError", "Spectrum", "dense_jacobian", "directional_gains", "leading_spectrum"]

_AT_ONCE, _VALUES = 128, 1_000_000  # tangents in a pass, and their values


class NotDifferentiableError(ValueError):
    """No gradient passes through the purifier: figures that need one cannot be made."""


@dataclass(frozen=True)
class Spectrum:
    """Singular values and vectors J = Σ s_i a_i b_iᵀ, largest first."""

    values: Tensor
    """(r,)."""
    left: Tensor
    """(r, D), a: what comes out."""
    right: Tensor
    """(r, D), b: what went in."""
    squares: float
    """Σ s² over all singular values, also over those that are not listed."""
    fourth_powers: float
    """Σ s⁴ likewise."""


@dataclass(frozen=True)
class JacobianSummary:
    """The action of a purifier on small changes of one image."""

    values: list[float]
    """Leading singular values."""
    effective_dimension: float
    """(Σ s²)² / Σ s⁴: how many directions pass, counted by their energy."""
    symmetry: float
    """Mean |a_i·b_i| over the leading ones, weighted by s: 1 for a symmetric Jacobian, as a linear filter's or a projection's."""
    overlap: float
    """Share of the leading right vectors' energy (as many as the effective dimension) that lies in as many leading principal
    directions: 1 if the purifier passes exactly the directions of most natural variance."""
    overlap_by_chance: float
    """What random vectors would have: dimension over D."""

    @classmethod
    def of(cls, spectrum: Spectrum, leading_directions: Tensor) -> JacobianSummary:
        """From a spectrum and principal directions (k, D), largest variance first."""
        effective = spectrum.squares**2 / max(spectrum.fourth_powers, 1e-30)
        count = max(1, min(round(effective), len(leading_directions), len(spectrum.values)))
        cosines = (spectrum.left * spectrum.right).sum(1).abs()[:count]
        weights = spectrum.values[:count]
        inside = (spectrum.right[:count] @ leading_directions[:count].to(spectrum.right).T).square().sum(1)
        return cls(
            values=spectrum.values.tolist(),
            effective_dimension=effective,
            symmetry=float((weights * cosines).sum() / weights.sum().clamp_min(1e-30)),
            overlap=float(inside.mean()),
            overlap_by_chance=count / leading_directions.shape[1],
        )


def _push(purifier: Model, image: Tensor, tangents: Tensor) -> Tensor:
    """J t for tangents (n, C, H, W) at one image (C, H, W), exactly: the derivative of Jᵀw with respect to w, which needs only
    what every layer has, a backward pass that can be differentiated."""
    outputs = []
    for part in torch.split(tangents, max(1, min(_AT_ONCE, _VALUES // image.numel()))):
        x, out = _forward(purifier, image, len(part))
        w = torch.zeros_like(out, requires_grad=True)
        (pulled,) = torch.autograd.grad(out, x, w, create_graph=True)
        (pushed,) = torch.autograd.grad(pulled, w, part)
        outputs.append(pushed.detach())
    return torch.cat(outputs)


def _pull(purifier: Model, image: Tensor, cotangents: Tensor) -> Tensor:
    """Jᵀ w for w (n, C, H, W) at one image (C, H, W)."""
    outputs = []
    for part in torch.split(cotangents, max(1, min(_AT_ONCE, _VALUES // image.numel()))):
        x, out = _forward(purifier, image, len(part))
        outputs.append(torch.autograd.grad(out, x, part)[0].detach())
    return torch.cat(outputs)


def _forward(purifier: Model, image: Tensor, copies: int) -> tuple[Tensor, Tensor]:
    x = image[None].repeat(copies, 1, 1, 1).requires_grad_()
    with torch.enable_grad():
        out = purifier(x)
    if not out.requires_grad:
        raise NotDifferentiableError("no gradient passes through this purifier")
    return x, out


def check_differentiable(purifier: Model, image: Tensor) -> None:
    """Raises:
    NotDifferentiableError: no gradient arrives at the image (C, H, W), or it is zero or not finite everywhere.
    """
    x = image[None].detach().requires_grad_()
    with torch.enable_grad():
        total = purifier(x).sum()
    gradient = torch.autograd.grad(total, x, allow_unused=True)[0] if total.requires_grad else None
    if gradient is None or not bool(torch.isfinite(gradient).all()) or not bool(gradient.any()):
        raise NotDifferentiableError("no usable gradient passes through this purifier")


def directional_gains(purifier: Model, image: Tensor, directions: Tensor) -> Tensor:
    """uᵀ J u (n,) at an image (C, H, W), for directions u (n, C, H, W) of unit norm: which share of a small change along u comes
    out along u.

    >>> directional_gains(lambda x: x / 2, torch.rand(1, 3, 3), torch.eye(9).view(9, 1, 3, 3))[0].item()
    0.5
    """
    return (_push(purifier, image, directions) * directions).flatten(1).sum(1)


def dense_jacobian(purifier: Model, image: Tensor) -> Tensor:
    """J (D, D) at an image (C, H, W): for small images only."""
    width = image.numel()
    return _pull(purifier, image, torch.eye(width).to(image).view(width, *image.shape)).flatten(1)  # row i: Jᵀ e_i


def spectrum_of(matrix: Tensor) -> Spectrum:
    """All of a dense Jacobian's."""
    left, values, right = torch.linalg.svd(matrix)
    energy = values.double().square()
    return Spectrum(values, left.T, right, float(energy.sum()), float(energy.square().sum()))


def leading_spectrum(purifier: Model, image: Tensor, count: int = 32, iterations: int = 2, seed: int = 0) -> Spectrum:
    """The ``count`` largest singular values and vectors by randomised subspace iteration (Halko, Martinsson & Tropp 2011,
    algorithms 4.4 and 5.1), with products J t and Jᵀ t only: for images of any size. The sums over all singular values are
    estimated from the same random t ~ N(0, I): E‖J t‖² = Σ s², E‖JᵀJ t‖² = Σ s⁴ (Hutchinson 1990).

    Args:
        purifier: images to images.
        image: (C, H, W).
        count: r.
        iterations: of J Jᵀ; more for a spectrum that falls slowly.
        seed: of the first subspace.
    """
    width = image.numel()
    count = min(count, width)
    drawn = min(count + 8, width)

    def push(rows: Tensor) -> Tensor:
        return _push(purifier, image, rows.view(-1, *image.shape)).flatten(1)

    def pull(rows: Tensor) -> Tensor:
        return _pull(purifier, image, rows.view(-1, *image.shape)).flatten(1)

    def orthonormal(rows: Tensor) -> Tensor:
        basis: Tensor = torch.linalg.qr(rows.T)[0]
        return basis.T

    generator = torch.Generator().manual_seed(seed)
    pushed = push(torch.randn(drawn, width, generator=generator).to(image))
    squares = float(pushed.square().sum(1).mean())
    fourth_powers = float(pull(pushed).square().sum(1).mean())
    rows = orthonormal(pushed)
    for _ in range(iterations):
        rows = orthonormal(push(orthonormal(pull(rows))))
    small = pull(rows)  # (drawn, D): Qᵀ J
    left, values, right = torch.linalg.svd(small, full_matrices=False)
    return Spectrum(values[:count], (left.T @ rows)[:count], right[:count], squares, fourth_powers)
