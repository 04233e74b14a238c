"""Check the test vectors from docs/protocol.md alone: Python integers, hashlib, and single primitives.

    python tests/vectors/checker.py            all files
    python tests/vectors/checker.py ring codec only these

Nothing of secfl is imported. AES, AES-GCM, X25519, ML-KEM-768 and Ed25519 come from the cryptography package;
everything between them is written out in the modules beside this one, in ``tests/crypto/naive_masking.py`` (masking)
and in ``tests/conformance/naive_ckks.py`` (products in the ring). Slow and plain on purpose.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER))
try:
    import check_basics
    import check_ckks
    import check_masking
finally:
    sys.path.remove(str(FOLDER))

FILES = tuple(sorted(path.stem for path in FOLDER.glob("*.json")))
CHECKS = {
    name: getattr(module, f"check_{name}")
    for name in FILES
    for module in (check_basics, check_masking, check_ckks)
    if hasattr(module, f"check_{name}")
}


def check(name: str, cases: Any = None) -> None:
    """Check one file, or other content in its place. An exception, mostly `AssertionError`, for what is wrong."""
    if cases is None:
        cases = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))["cases"]
    CHECKS[name](cases)


if __name__ == "__main__":
    for chosen in sys.argv[1:] or FILES:
        check(chosen)
        sys.stdout.write(f"{chosen}: as docs/protocol.md says\n")
