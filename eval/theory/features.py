"""Dense and sparse features of the same pictures: atoms to look at, and figures that say how they differ."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from purify.autoencoder import DenoisingSparseAutoencoder, DSAEConfig
from purify.linear import principal_components

__all__ = ["FeatureSet", "cut_patches", "dictionary_stability", "hoyer_sparsity", "learn_features"]


@dataclass(frozen=True, kw_only=True)
class FeatureSet:
    """Atoms learnt from patches by one method, and what their codes are like on other patches."""

    data: str
    method: str
    """PCA, dense autoencoder or DSAE."""
    atoms: Tensor
    """(K, C, a, a), of unit norm, those that are used most first."""
    l0: float
    """Mean number of entries of the code above 1 % of its largest entry anywhere."""
    density: float
    """``l0`` over K."""
    code_sparsity: float
    """Mean Hoyer sparsity of a patch's code: 0 all entries equal, 1 a single one."""
    dead_units: float
    """Share of the units that were active for no patch."""
    part_basedness: float
    """Mean Hoyer sparsity of an atom's pixels: near 0 it covers the whole patch evenly, near 1 it is one pixel."""
    explained_variance: float
    stability: float
    """Mean matched |cos| of the atoms of two seeds, over all pairs of seeds (1: the same dictionary each time)."""


def hoyer_sparsity(rows: Tensor) -> Tensor:
    """(√n − ‖v‖₁/‖v‖₂) / (√n − 1) of each row (N, n): 0 … 1 (Hoyer 2004). A row of zeros counts as 1.

    >>> hoyer_sparsity(torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 2.0, 0.0, 0.0]])).tolist()
    [0.0, 1.0]
    """
    root = rows.shape[1] ** 0.5
    ratio = rows.abs().sum(1) / rows.norm(dim=1).clamp_min(1e-12)
    sparsity = (root - ratio) / (root - 1)
    return torch.where(rows.norm(dim=1) > 0, sparsity, torch.ones_like(sparsity))


def dictionary_stability(first: Tensor, second: Tensor) -> float:
    """Mean |cos| of the atoms of two dictionaries (K, …), matched one to one by the Hungarian method."""
    cosines = (F.normalize(first.flatten(1), dim=1) @ F.normalize(second.flatten(1), dim=1).T).abs()
    rows, columns = linear_sum_assignment(-cosines.numpy())
    return float(cosines[rows, columns].mean())


def cut_patches(images: Tensor, side: int, count: int, seed: int = 0) -> Tensor:
    """``count`` patches (count, C, side, side) at random places of random images (N, C, H, W); flat ones are left out.

    Raises:
        ValueError: images smaller than a patch.
    """
    n, _, height, width = images.shape
    if min(height, width) < side:
        raise ValueError(f"patches of {side} pixels cannot be cut from images of {height} × {width}")
    generator = torch.Generator().manual_seed(seed)
    drawn = 2 * count
    which = torch.randint(n, (drawn,), generator=generator)
    top = torch.randint(height - side + 1, (drawn,), generator=generator)
    left = torch.randint(width - side + 1, (drawn,), generator=generator)
    patches = images.unfold(2, side, 1).unfold(3, side, 1)[which, :, top, left]  # (drawn, C, side, side)
    return patches[patches.flatten(1).std(1) > 0.02][:count]


def learn_features(
    data: str, images: Tensor, *, side: int = 12, units: int = 64, l1: float = 0.1, steps: int = 1500, seeds: int = 3
) -> list[FeatureSet]:
    """PCA, a dense autoencoder and a DSAE on the same patches, each with ``units`` atoms of ``side`` × ``side`` pixels.

    Both autoencoders are one linear encoder and one linear decoder, and undo Gaussian noise of 0.1; the DSAE has non-negative
    soft thresholds and an L1 penalty between them, the dense one nothing.

    Args:
        data: what the images are called.
        images: (N, C, H, W) in [0, 1].
        side: of a patch.
        units: K.
        l1: λ of the lasso ½‖x − x̂‖² + λ Σ z, in units of the root mean square distance of a patch from the mean patch.
        steps: of Adam, on 256 patches each.
        seeds: dictionaries learnt by each method, for its stability.
    """
    others = torch.arange(len(images)) % 10 == 0  # images of which no patch is learnt
    held_out, training = cut_patches(images[others], side, 2_000), cut_patches(images[~others], side, 18_000)
    weight = l1 * float((training - training.mean(0)).flatten(1).square().sum(1).mean().sqrt())
    return [
        _pca_features(data, training, held_out, units),
        *(
            _learnt_features(data, training, held_out, units, weight if sparse else None, steps, seeds)
            for sparse in (False, True)
        ),
    ]


def _pca_features(data: str, training: Tensor, held_out: Tensor, units: int) -> FeatureSet:
    halves = [principal_components(part.flatten(1), units) for part in (training, training[::2], training[1::2])]
    pca, (first, second) = halves[0], halves[1:]
    code = (held_out.flatten(1).double() - pca.mean) @ pca.directions.T
    rebuilt = (pca.mean + code @ pca.directions).view_as(held_out)
    atoms = pca.directions.view(-1, *held_out.shape[1:]).float()
    stability = dictionary_stability(first.directions, second.directions)  # two halves of the patches: it has no seed
    return _describe(data, "PCA", atoms, code.float(), held_out, rebuilt.float(), stability)


def _learnt_features(
    data: str, training: Tensor, held_out: Tensor, units: int, l1: float | None, steps: int, seeds: int
) -> FeatureSet:
    models = [_fit(training, units, l1, steps, seed) for seed in range(seeds)]
    model = models[0]
    with torch.no_grad():
        code = (model.analyse(held_out) if l1 is None else model.encode(held_out)).flatten(1)  # (N, K): one place
        rebuilt = model.synthesise(code[..., None, None])
        dictionaries = [one.dictionary for one in models]
    pairs = [dictionary_stability(a, b) for i, a in enumerate(dictionaries) for b in dictionaries[:i]]
    stability = sum(pairs) / len(pairs) if pairs else float("nan")
    method = "dense autoencoder" if l1 is None else "DSAE"
    return _describe(data, method, dictionaries[0], code, held_out, rebuilt, stability)


def _fit(training: Tensor, units: int, l1: float | None, steps: int, seed: int) -> DenoisingSparseAutoencoder:
    """A patch is one place of the code: atom and stride are its side."""
    channels, side = training.shape[1], training.shape[-1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DenoisingSparseAutoencoder(DSAEConfig(channels=channels, units=units, atom=side, stride=side, encoder="linear"))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.offset.copy_(training.mean((0, 2, 3))[:, None, None])
    descent = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(descent, steps)
    for _ in range(steps):
        images = training[torch.randint(len(training), (256,), generator=generator)]
        noisy = images + 0.1 * torch.randn(images.shape, generator=generator)
        code = model.analyse(noisy) if l1 is None else model.encode(noisy)
        objective = 0.5 * (model.synthesise(code) - images).square().sum()
        if l1 is not None:
            objective = objective + l1 * code.sum()
        descent.zero_grad()
        (objective / len(images)).backward()  # type: ignore[no-untyped-call]
        descent.step()
        schedule.step()
    return model.eval()


def _describe(
    data: str, method: str, atoms: Tensor, code: Tensor, patches: Tensor, rebuilt: Tensor, stability: float
) -> FeatureSet:
    active = code.abs() > 0.01 * code.abs().max()
    spread = (patches - patches.mean(0)).square().sum()
    order = code.square().mean(0).argsort(descending=True)
    return FeatureSet(
        data=data,
        method=method,
        atoms=atoms[order],
        l0=float(active.sum(1).float().mean()),
        density=float(active.float().mean()),
        code_sparsity=float(hoyer_sparsity(code).mean()),
        dead_units=1 - float(active.any(0).float().mean()),
        part_basedness=float(hoyer_sparsity(atoms.flatten(1)).mean()),
        explained_variance=1 - float((patches - rebuilt).square().sum() / spread),
        stability=stability,
    )
