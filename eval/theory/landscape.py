"""What the L1 penalty does to the landscape of dictionary learning: rotated solutions become saddles, specialised ones strict
minima."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, product

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

__all__ = ["CriticalPoint", "Recovery", "critical_points", "loss", "recover_atoms", "symmetric_codes"]

_SMOOTH = 1e-2
"""ε of the smoothed |z| ≈ √(z² + ε²) − ε: the Hessian needs a second derivative at 0."""


@dataclass(frozen=True, kw_only=True)
class CriticalPoint:
    """The landscape at one critical point."""

    name: str
    """specialised: each atom is a true one; one pair mixed: two of them rotated by 45° in their plane; all mixed: each atom has
    an equal share of every true one (a Hadamard matrix)."""
    penalty: float
    """λ."""
    gradient: float
    """Its length: 0 at a critical point."""
    eigenvalues: list[float]
    """Of the Hessian, smallest first."""
    value: float
    """Of the loss."""

    @property
    def kind(self) -> str:
        """strict minimum, saddle, or flat (directions without curvature, and none downhill)."""
        scale = 1e-6 * max(1.0, abs(self.eigenvalues[-1]))
        if self.eigenvalues[0] < -scale:
            return "saddle"
        return "strict minimum" if self.eigenvalues[0] > scale else "flat"


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """How often gradient descent found the true atoms."""

    penalty: float
    starts: int
    recovered: int
    """Starts after which every true atom has a learnt one with |cos| above 0.99 (matched one to one)."""
    similarity: list[float]
    """Mean matched |cos|, one a start."""


def loss(dictionary: Tensor, samples: Tensor, penalty: float) -> Tensor:
    """E ½‖x − D Dᵀx‖² + λ E Σ |Dᵀx|, a tied autoencoder with an L1 penalty, its |·| smoothed.

    Without λ every orthogonal D is a minimum: the loss knows the subspace, not the atoms. With λ the rotations of D compete by
    the L1 norm of the code, which for sparse codes is least at the true atoms (Olshausen & Field 1996; landscape: Sun, Qu &
    Wright 2017).

    Args:
        dictionary: (…, d, k), atoms as columns.
        samples: (n, d), rows x.
        penalty: λ.
    """
    code = samples @ dictionary  # (…, n, k)
    rest = samples - code @ dictionary.transpose(-1, -2)
    size = (code.square() + _SMOOTH**2).sqrt() - _SMOOTH
    return (0.5 * rest.square().sum(-1) + penalty * size.sum(-1)).mean(-1)


def symmetric_codes(atoms: int = 4, active: int = 1) -> Tensor:
    """Every code with ``active`` of ``atoms`` entries at ±1: a finite population in which no atom and no sign is preferred.

    >>> symmetric_codes(2).tolist()
    [[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]
    """
    rows = []
    for support in combinations(range(atoms), active):
        for signs in product((1.0, -1.0), repeat=active):
            row = [0.0] * atoms
            for place, sign in zip(support, signs, strict=True):
                row[place] = sign
            rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


def critical_points(penalty: float) -> list[CriticalPoint]:
    """The three critical points of :class:`CriticalPoint`, for four true atoms (the coordinate axes) and codes with one active
    entry.

    Args:
        penalty: λ; 0 for the landscape without it.
    """
    samples = symmetric_codes()
    half = 0.5**0.5
    pair = torch.eye(4, dtype=torch.float64)
    pair[:2, :2] = torch.tensor([[half, -half], [half, half]])
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    places = {"specialised": torch.eye(4, dtype=torch.float64), "one pair mixed": pair, "all mixed": torch.kron(two, two) / 2}
    return [_examine(name, start, samples, penalty) for name, start in places.items()]


def _examine(name: str, start: Tensor, samples: Tensor, penalty: float) -> CriticalPoint:
    """Newton's method to the critical point beside ``start`` (it moves the length of the atoms, by which the penalty shrinks
    them), then gradient and Hessian by autograd."""

    def objective(flat: Tensor) -> Tensor:
        return loss(flat.view_as(start), samples, penalty)

    second_derivative = torch.func.jacrev(torch.func.grad(objective))  # torch.func.hessian's forward mode warns of torch.jit
    flat = start.flatten().clone()
    for _ in range(50):
        gradient = torch.func.grad(objective)(flat)
        hessian = second_derivative(flat)
        flat = flat - torch.linalg.pinv(hessian, rtol=1e-9, hermitian=True) @ gradient
    eigenvalues = torch.linalg.eigvalsh(second_derivative(flat))
    return CriticalPoint(
        name=name,
        penalty=penalty,
        gradient=float(torch.func.grad(objective)(flat).norm()),
        eigenvalues=eigenvalues.tolist(),
        value=float(objective(flat)),
    )


def recover_atoms(
    penalty: float,
    *,
    starts: int = 100,
    size: int = 8,
    samples: int = 2000,
    density: float = 0.15,
    steps: int = 1500,
    seed: int = 0,
) -> Recovery:
    """Learn a dictionary from sparse samples with known atoms, from many random starts at once.

    x = D* s with a random orthogonal D* (size × size) and codes s of which each entry is N(0, 1) with probability ``density``,
    else 0. Gradient descent (Adam) on :func:`loss`.

    Args:
        penalty: λ; 0: without it.
        starts: random beginnings.
        size: atoms, and dimension.
        samples: n.
        density: share of active entries.
        steps: of descent.
        seed: of everything random.
    """
    generator = torch.Generator().manual_seed(seed)
    true = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
    codes = torch.randn(samples, size, generator=generator, dtype=torch.float64)
    codes = codes * (torch.rand(codes.shape, generator=generator) < density)
    data = codes @ true.T
    learnt = torch.randn(starts, size, size, generator=generator, dtype=torch.float64) / size**0.5
    learnt.requires_grad_()
    descent = torch.optim.Adam([learnt], lr=0.05)
    for step in range(steps):
        for group in descent.param_groups:
            group["lr"] = 0.05 * (1 - step / steps)
        descent.zero_grad()
        loss(learnt, data, penalty).sum().backward()  # type: ignore[no-untyped-call]
        descent.step()
    with torch.no_grad():
        atoms = torch.nn.functional.normalize(learnt, dim=1)
        cosines = (true.T @ atoms).abs()  # (starts, size, size)
    matched = [one[linear_sum_assignment(-one.numpy())] for one in cosines]
    return Recovery(
        penalty=penalty,
        starts=starts,
        recovered=sum(bool(one.min() > 0.99) for one in matched),
        similarity=[float(one.mean()) for one in matched],
    )
