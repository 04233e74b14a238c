"""Randomness as an argument.

`Rng` feeds keys, masks, noise and patient sampling. `ExperimentSeed` feeds what is public anyway: weight
initialisation, augmentation, phantom data. They are different types on purpose, so that a seed from the
command line can never become a secret.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

if TYPE_CHECKING:
    import numpy as np

__all__ = ["ExperimentSeed", "InsecureSeededRng", "Rng", "SystemRng"]


@runtime_checkable
class Rng(Protocol):
    """A source of secret bytes. Implementations say by ``is_secret`` whether privacy may rest on them."""

    @property
    def is_secret(self) -> bool:
        """False for anything that a seed reproduces: the ledger then says ``NonPrivate``."""
        ...

    def bytes(self, count: int) -> bytes:
        """``count`` fresh bytes."""
        ...

    def fork(self, label: str) -> Rng:
        """An independent source for one purpose."""
        ...


class SystemRng:
    """The operating system's CSPRNG."""

    __slots__ = ()

    @property
    def is_secret(self) -> bool:
        """True."""
        return True

    def bytes(self, count: int) -> bytes:
        """``count`` bytes of ``os.urandom``."""
        return os.urandom(count)

    def fork(self, label: str) -> SystemRng:  # noqa: ARG002 - the label only matters to seeded sources
        """Itself: every read is independent."""
        return self

    def __repr__(self) -> str:
        return "SystemRng()"


class InsecureSeededRng:
    """Reproducible bytes for tests and for ``--insecure-test-noise``. Nothing private may rest on it.

    AES-256-CTR under SHA-256 of seed and label, so that two labels give unrelated streams.
    """

    __slots__ = ("_path", "_stream")

    def __init__(self, seed: int, *, path: str = "") -> None:
        self._path = f"{seed}/{path}"
        key = hashlib.sha256(b"secfl/insecure-test-rng/" + self._path.encode()).digest()
        self._stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    @property
    def is_secret(self) -> bool:
        """False."""
        return False

    def bytes(self, count: int) -> bytes:
        """The next ``count`` bytes of the stream."""
        return self._stream.update(bytes(count))

    def fork(self, label: str) -> InsecureSeededRng:
        """A stream for ``label``, independent of how much of this one was read."""
        seed, _, path = self._path.partition("/")
        return InsecureSeededRng(int(seed), path=f"{path}/{len(label)}:{label}")

    def __repr__(self) -> str:
        return "InsecureSeededRng(<redacted>)"


@dataclass(frozen=True, slots=True)
class ExperimentSeed:
    """A public seed for reproducible experiments; never for keys, noise or patient sampling."""

    value: int

    def derive(self, label: str) -> int:
        """A 63-bit integer for one purpose, for example to seed torch."""
        digest = hashlib.sha256(f"secfl/experiment/{self.value}/{label}".encode()).digest()
        return int.from_bytes(digest[:8], "little") >> 1

    def generator(self, label: str) -> np.random.Generator:
        """A NumPy generator for one purpose (phantoms, partitions, augmentation)."""
        import numpy as np

        return np.random.Generator(np.random.Philox(key=self.derive(label)))
