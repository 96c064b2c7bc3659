"""The spectral audit: which directions of image space a purifier lets through, and what that does to decisions and margins."""

from purify.eval.spectrum.audit import Audit, spectral_audit
from purify.eval.spectrum.measure import AuditSettings

__all__ = ["Audit", "AuditSettings", "spectral_audit"]
