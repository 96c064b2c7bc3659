"""A linear autoencoder finds the subspace of PCA, and nothing but the subspace."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from purify.linear import fit_linear_autoencoder, principal_angles, principal_components

__all__ = ["SubspaceFinding", "compare_with_pca"]


@dataclass(frozen=True, kw_only=True)
class SubspaceFinding:
    """A linear autoencoder beside scikit-learn's PCA."""

    data: str
    n: int
    dimension: int
    """D, of a sample."""
    units: int
    """k, of the code."""
    largest_angle: float
    """Degrees, between both subspaces."""
    error: float
    """E‖x − x̂‖² of the autoencoder."""
    pca_error: float
    """The same of PCA, the least possible."""
    alignment: float
    """Mean over PCA's directions of the largest |cos| to an atom: 1 if atoms were principal directions; the subspace alone does
    not say which basis of it is found."""
    losses: list[float]
    """Of the autoencoder, at every hundredth step."""

    @property
    def excess(self) -> float:
        """Error above PCA's, as a share of it."""
        return self.error / self.pca_error - 1


def compare_with_pca(data: str, samples: Tensor, units: int, *, steps: int = 20_000, seed: int = 0) -> SubspaceFinding:
    """Train a linear autoencoder by gradient descent and hold it against PCA (Baldi & Hornik 1989; Bourlard & Kamp 1988).

    For the loss E‖x − W₂W₁x‖² (x centred) every critical point projects onto k eigenvectors of the covariance; the one with the k
    largest is the minimum, all others are saddles. W₂ is settled up to an invertible k × k matrix: W₂C, C⁻¹W₁ does the same.

    Args:
        data: what it is called.
        samples: (n, D).
        units: k.
        steps: of gradient descent.
        seed: of the weights.
    """
    fit = fit_linear_autoencoder(samples, units, steps=steps, seed=seed)
    pca = principal_components(samples, units)
    centred = samples.double() - pca.mean
    residual = centred - centred @ pca.directions.T @ pca.directions
    atoms = torch.nn.functional.normalize(fit.decoder.T, dim=1)
    return SubspaceFinding(
        data=data,
        n=len(samples),
        dimension=samples.shape[1],
        units=units,
        largest_angle=float(principal_angles(fit.decoder.T, pca.directions).max()),
        error=float((samples.double() - fit.reconstruct(samples)).square().sum(1).mean()),
        pca_error=float(residual.square().sum(1).mean()),
        alignment=float((pca.directions @ atoms.T).abs().amax(1).mean()),
        losses=fit.losses.tolist(),
    )
