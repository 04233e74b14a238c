"""Tools that try to prove the ledger wrong, for this project and for others. docs/audit.md says what they mean."""

from secfl.audit.mechanism import Assumed, Calls, MechanismAudit, audit_mechanism, audit_samples
from secfl.audit.verdicts import Verdict

__all__ = ["Assumed", "Calls", "MechanismAudit", "Verdict", "audit_mechanism", "audit_samples"]
