"""Tools that try to prove the ledger wrong, for this project and for others. docs/audit.md says what they mean."""

from secfl.audit.findings import Finding
from secfl.audit.mechanism import Assumed, Calls, MechanismAudit, audit_mechanism, audit_samples
from secfl.audit.uniformity import audit_updates
from secfl.audit.verdicts import Verdict, worst

__all__ = [
    "Assumed",
    "Calls",
    "Finding",
    "MechanismAudit",
    "Verdict",
    "audit_mechanism",
    "audit_samples",
    "audit_updates",
    "worst",
]
