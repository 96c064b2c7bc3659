"""The attacker: small frozen objects that hold settings and no model, called with a model, images and labels.

A model is any callable from images (N, C, H, W) in [0, 1] to logits (N, classes). Attacks know logits and gradients, nothing of
purifiers, and import torch alone (and ``purify.images``, the checks of what a batch is; ``foolbox.py`` and ``pyautoattack.py``
wrap those libraries).
"""

from purify.attacks.apgd import APGD, TargetedAPGD
from purify.attacks.attack import Attack
from purify.attacks.fgsm import FGSM
from purify.attacks.fmn import FMN
from purify.attacks.foolbox import FoolboxAttack
from purify.attacks.gradient import GradientPath, bpda, eot, every_path, exact, transfer
from purify.attacks.mifgsm import MIFGSM
from purify.attacks.pgd import PGD
from purify.attacks.pyautoattack import AutoAttack
from purify.attacks.random_search import RandomSearch
from purify.attacks.result import AttackResult
from purify.attacks.spsa import SPSA
from purify.attacks.square import Square
from purify.attacks.suite import Entry, Suite, SuiteResult, check_deterministic, make_suite, run_suite, verdict
from purify.attacks.threat import ThreatModel

__all__ = [
    "APGD",
    "FGSM",
    "FMN",
    "MIFGSM",
    "PGD",
    "SPSA",
    "Attack",
    "AttackResult",
    "AutoAttack",
    "Entry",
    "FoolboxAttack",
    "GradientPath",
    "RandomSearch",
    "Square",
    "Suite",
    "SuiteResult",
    "TargetedAPGD",
    "ThreatModel",
    "bpda",
    "check_deterministic",
    "eot",
    "every_path",
    "exact",
    "make_suite",
    "run_suite",
    "transfer",
    "verdict",
]
