"""How long does the spectral audit of a purifier of 224×224 photographs take, and how much memory?

    python tests/bench/large_audit.py DATA_ROOT [IMAGES]     # by default as many images as `purify audit` takes

DATA_ROOT holds ``imagenet-750.zip``, ``imagenet_wnids.txt`` and ``squeezenet1_0-imagenet.safetensors``. The purifier is a small
DSAE that is trained here for two minutes to undo noise: its figures are no result, only its size is meant.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

import purify
from purify.attacks import ThreatModel
from purify.data import ImageSet, Split
from purify.eval.baselines import GaussianFilter
from purify.eval.spectrum import AuditSettings, spectral_audit
from purify.normalization import Normalize, NormalizedClassifier

SIDE = 224


def photographs(root: Path, split: Split) -> ImageSet:
    name = f"imagefolder:{root / 'imagenet-750.zip'}"
    return purify.load_dataset(name, split, size=SIDE, class_list=root / "imagenet_wnids.txt")


def squeezenet(root: Path) -> NormalizedClassifier:
    network = torchvision.models.squeezenet1_0(weights=None)
    network.load_state_dict(load_file(root / "squeezenet1_0-imagenet.safetensors"))
    return NormalizedClassifier(network, Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))).eval()


def small_purifier(images: Tensor, steps: int = 400) -> purify.DenoisingSparseAutoencoder:
    """Strided atoms at a quarter of the resolution, 0.4 G multiply-accumulates; undoes Gaussian noise of up to 0.1."""
    torch.manual_seed(0)
    model = purify.DenoisingSparseAutoencoder(purify.DSAEConfig(channels=3, units=128, atom=8, stride=4, width=64, depth=2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in tqdm(range(steps), desc="small purifier", mininterval=5):
        top, left = torch.randint(SIDE - 64, (2,), generator=generator).tolist()
        clean = images[torch.randint(len(images), (16,), generator=generator), :, top : top + 64, left : left + 64]
        noisy = clean + 0.1 * torch.rand((), generator=generator) * torch.randn(clean.shape, generator=generator)
        code = model.encode(noisy)
        loss = 0.5 * (model.synthesise(code, (64, 64)) - clean).square().mean() + 2e-3 * code.sum() / clean.numel()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.eval()


def main() -> None:
    root, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None
    settings = AuditSettings.suited(3 * SIDE * SIDE, images=count)
    natural = photographs(root, "train").first(settings.natural).batch(slice(None))[0]
    purifier, classifier = small_purifier(natural), squeezenet(root)
    images, labels = photographs(root, "test").first(settings.images).batch(slice(None))
    started = time.perf_counter()
    audit = spectral_audit(
        classifier,
        {"small DSAE": purifier, "blur 1.0": GaussianFilter(1.0)},
        natural,
        images,
        labels,
        ThreatModel("linf", 4 / 255),
        settings=settings,
    )
    seconds, peak = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print("\n".join(audit.words()))
    print(f"{len(images)} images: {seconds:.0f} s with {torch.get_num_threads()} threads, peak memory {peak:.1f} GiB")


if __name__ == "__main__":
    main()
