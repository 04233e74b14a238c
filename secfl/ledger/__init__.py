"""The privacy ledger: where differential privacy and cryptography meet, one ε per adversary."""

from secfl.ledger.accounts import Account
from secfl.ledger.budget import Budget
from secfl.ledger.checkpoints import Checkpoint, CoSigner, Witness
from secfl.ledger.entry import Exposure, KeyCustody, RunHeader
from secfl.ledger.events import (
    Composed,
    Event,
    Family,
    Noise,
    NonPrivate,
    Placement,
    Sampling,
    SiteNoise,
    event_from_dp_accounting,
    event_from_plan,
)
from secfl.ledger.log import PrivacyLedger
from secfl.ledger.site_accounts import SiteAccounts
from secfl.ledger.state import Reservation
from secfl.ledger.statement import Statement
from secfl.ledger.verify import Verdict, verify_file

__all__ = [
    "Account",
    "Budget",
    "Checkpoint",
    "CoSigner",
    "Composed",
    "Event",
    "Exposure",
    "Family",
    "KeyCustody",
    "Noise",
    "NonPrivate",
    "Placement",
    "PrivacyLedger",
    "Reservation",
    "RunHeader",
    "Sampling",
    "SiteAccounts",
    "SiteNoise",
    "Statement",
    "Verdict",
    "Witness",
    "event_from_dp_accounting",
    "event_from_plan",
    "verify_file",
]
