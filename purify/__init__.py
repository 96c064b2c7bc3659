"""Adversarial purification with a denoising sparse autoencoder, and an honest evaluation of it.

``purify.load`` and ``purify.wrap`` make the defence; ``purify.attacks`` tries to break it; ``purify.eval`` says what came of it.
"""

from typing import TYPE_CHECKING, Any

from purify.architecture import ClassifierConfig, build_classifier
from purify.autoencoder import CodeStatistics, DenoisingSparseAutoencoder, DSAEConfig
from purify.checkpoint import CheckpointError, list_checkpoints, load, load_classifier
from purify.classifier import PurifiedClassifier, wrap
from purify.data import load_dataset
from purify.normalization import NormalizedClassifier
from purify.pretrained import load_torchvision

if TYPE_CHECKING:
    from purify.fitting import fit

__all__ = [
    "CheckpointError",
    "ClassifierConfig",
    "CodeStatistics",
    "DSAEConfig",
    "DenoisingSparseAutoencoder",
    "NormalizedClassifier",
    "PurifiedClassifier",
    "build_classifier",
    "fit",
    "list_checkpoints",
    "load",
    "load_classifier",
    "load_dataset",
    "load_torchvision",
    "wrap",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """``purify.fit`` needs attacks and evaluation, which a user of the defence alone need not load."""
    if name == "fit":
        from purify.fitting import fit

        return fit
    raise AttributeError(f"module 'purify' has no attribute {name!r}")
