"""The attacker: small frozen objects that hold settings and no model, called with a model, images and labels.

A model is any callable from images (N, C, H, W) in [0, 1] to logits (N, classes). Attacks know logits and gradients, nothing of
purifiers, and import torch alone (and ``purify.images``, the checks of what a batch is).
"""

from purify.attacks.attack import Attack
from purify.attacks.fgsm import FGSM
from purify.attacks.gradient import GradientPath, bpda, exact
from purify.attacks.pgd import PGD
from purify.attacks.result import AttackResult
from purify.attacks.threat import ThreatModel

__all__ = ["FGSM", "PGD", "Attack", "AttackResult", "GradientPath", "ThreatModel", "bpda", "exact"]
