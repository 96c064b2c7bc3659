"""Adversarial purification with a denoising sparse autoencoder, and an honest evaluation of it.

``purify.load`` and ``purify.wrap`` make the defence; ``purify.attacks`` tries to break it; ``purify.eval`` says what came of it.
"""

from purify.architecture import ClassifierConfig, build_classifier
from purify.autoencoder import CodeStatistics, DenoisingSparseAutoencoder, DSAEConfig
from purify.checkpoint import CheckpointError, list_checkpoints, load, load_classifier
from purify.classifier import PurifiedClassifier, wrap
from purify.data import load_dataset
from purify.normalization import NormalizedClassifier

__all__ = [
    "CheckpointError",
    "ClassifierConfig",
    "CodeStatistics",
    "DSAEConfig",
    "DenoisingSparseAutoencoder",
    "NormalizedClassifier",
    "PurifiedClassifier",
    "build_classifier",
    "list_checkpoints",
    "load",
    "load_classifier",
    "load_dataset",
    "wrap",
]
__version__ = "0.1.0"
