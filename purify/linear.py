"""PCA, and the linear autoencoder that finds the same subspace by gradient descent."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import subspace_angles
from sklearn.decomposition import PCA
from torch import Tensor

__all__ = ["LinearFit", "PrincipalComponents", "fit_linear_autoencoder", "principal_angles", "principal_components"]


class PrincipalComponents(NamedTuple):
    """Directions of natural variance, largest first, float64."""

    mean: Tensor
    """(D,)."""
    directions: Tensor
    """(k, D), orthonormal rows."""
    variances: Tensor
    """(k,), of the samples along each direction."""


def principal_components(samples: Tensor, k: int | None = None) -> PrincipalComponents:
    """Principal components of ``samples`` (n, D), by scikit-learn.

    Args:
        samples: rows.
        k: how many; None: all, min(n, D). More than there are gives all.

    Raises:
        ValueError: fewer than two samples.

    >>> found = principal_components(torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 1.0], [2.0, 1.0]]))
    >>> found.variances.tolist(), found.directions.abs().round().tolist()
    ([1.33..., 0.33...], [[1.0, 0.0], [0.0, 1.0]])
    """
    if samples.ndim != 2 or len(samples) < 2:
        raise ValueError(f"principal components need at least two samples (n, D), got shape {tuple(samples.shape)}")
    most = min(samples.shape)
    solver = "full" if most <= 1024 else "randomized"
    pca = PCA(n_components=most if k is None else min(k, most), svd_solver=solver, random_state=0)
    pca.fit(samples.double().cpu().numpy())
    return PrincipalComponents(*(torch.from_numpy(v) for v in (pca.mean_, pca.components_, pca.explained_variance_)))


def principal_angles(a: Tensor, b: Tensor) -> Tensor:
    """Angles in degrees between the subspaces that the rows of ``a`` (k, D) and ``b`` (l, D) span, largest first (SciPy).

    >>> principal_angles(torch.eye(3)[:2], torch.eye(3)[1:]).round().tolist()
    [90.0, 0.0]
    """
    angles = subspace_angles(a.double().numpy().T, b.double().numpy().T)
    return torch.from_numpy(np.rad2deg(angles))


class LinearFit(NamedTuple):
    """A linear autoencoder x̂ = μ + W₂ W₁ (x − μ), float64."""

    mean: Tensor
    """(D,)."""
    encoder: Tensor
    """W₁ (k, D)."""
    decoder: Tensor
    """W₂ (D, k)."""
    losses: Tensor
    """Mean squared error ‖x − x̂‖² at every hundredth step."""

    def reconstruct(self, samples: Tensor) -> Tensor:
        """x̂ for ``samples`` (n, D)."""
        return self.mean + (samples.double() - self.mean) @ self.encoder.T @ self.decoder.T


def fit_linear_autoencoder(
    samples: Tensor, k: int, *, steps: int = 20_000, step_size: float = 0.3, momentum: float = 0.97, seed: int = 0
) -> LinearFit:
    """Minimise E‖x − μ − W₂W₁(x − μ)‖² by gradient descent with momentum, from small random weights.

    Its only minima that are not saddles span the k leading principal directions (Baldi & Hornik 1989, theorem). The mean over
    all samples is tr((I − W₂W₁) Σ (I − W₂W₁)ᵀ) with their covariance Σ, so that a step costs the same for any number of them.

    Args:
        samples: (n, D).
        k: width of the code, at most D.
        steps: of gradient descent.
        step_size: over the largest eigenvalue of Σ.
        momentum: Nesterov's.
        seed: of the weights.

    Raises:
        ValueError: k outside 1 … D.

    >>> x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 2.0, 0.1])
    >>> fit = fit_linear_autoencoder(x, 2, steps=2000)
    >>> bool(principal_angles(fit.decoder.T, principal_components(x, 2).directions).max() < 0.1)
    True
    """
    n, width = samples.shape
    if not 1 <= k <= width:
        raise ValueError(f"expected a code of 1 to {width} units for samples of {width} values, got {k}")
    centred = samples.double() - samples.double().mean(0)
    covariance = centred.T @ centred / n
    scale = torch.linalg.eigvalsh(covariance)[-1].clamp_min(1e-12)
    covariance = covariance / scale
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(2, k, width, generator=generator, dtype=torch.float64) * 0.1 / width**0.5
    encoder, decoder = draw[0].clone(), draw[1].T.clone()
    descent = (torch.zeros_like(encoder), torch.zeros_like(decoder))
    losses = []
    for step in range(steps):
        ahead = encoder + momentum * descent[0], decoder + momentum * descent[1]
        seen = ahead[0] @ covariance  # W₁Σ
        rest = covariance - ahead[1] @ seen  # (I − W₂W₁)Σ
        gradient = -ahead[1].T @ rest, -rest @ ahead[0].T
        descent = tuple(momentum * d - step_size * g for d, g in zip(descent, gradient, strict=True))
        encoder, decoder = encoder + descent[0], decoder + descent[1]
        if step % 100 == 0:
            residual = torch.eye(width, dtype=torch.float64) - decoder @ encoder
            losses.append(torch.trace(residual @ covariance @ residual.T) * scale)
    return LinearFit(samples.double().mean(0), encoder, decoder, torch.stack(losses))
