"""The judge: runs attacks on defences and says what it found, claim by claim."""

from purify.eval.evaluate import Settings, evaluate, gradient_paths
from purify.eval.recovery import Accuracy, Recovery
from purify.eval.report import Report

__all__ = ["Accuracy", "Recovery", "Report", "Settings", "evaluate", "gradient_paths"]
