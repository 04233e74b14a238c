"""One line of the benchmark: what one scheme cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Row"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The cost of one scheme for vectors of ``parameters`` real numbers.

    Times are nanoseconds of processor time per parameter, so that other programs on the machine count little;
    bytes are bytes per parameter. Both are of one client unless said otherwise.

    Attributes:
        scheme: Name of the scheme, or of the framework that it is compared with.
        key_mode: Who holds keys.
        version: Of the software measured.
        parameters: d.
        clients: Clients whose inputs were added.
        survivors: How many of them are in the sum.
        bits: Width of the integers that are added; ``None`` where real numbers are encrypted.
        threads: Threads that the software was allowed to use; ``None`` when it decides itself.
        client_ns_per_param: Everything one client does: ``encode``, ``protect`` and ``pack``.
        encode_ns_per_param: Clipping and rounding real numbers to integers.
        protect_ns_per_param: Keys, signatures, masks or encryption, hashing.
        pack_ns_per_param: Writing the result as bytes; ``None`` when it was not measured apart.
        client_elapsed_ns_per_param: Elapsed time of the same: more where other programs had the processor, less
            where several cores worked.
        server_ns_per_param: What the aggregator does for one input: reading, checking, adding.
        open_ns_per_param: Opening the sum, by whoever does it.
        bytes_up_per_param: The protected input.
        bytes_down_per_param: What every client receives that grows with d: the new sum, as it would be sent.
        opener_bytes_down_per_param: What the client that opens the sum receives on top; 0 where nobody has to.
        setup_bytes_per_client: Everything else that one client sends and receives, mean.
        peak_mb: Most memory that the aggregator needed, in 10^6 bytes, the message at hand included.
        peak_vectors: The same in vectors of d 32-bit words.
        exact: Whether the result is the exact sum of the integers.
        largest_error: Largest error of the mean where it is not exact.
        note: Anything a reader must know.
    """

    scheme: str
    key_mode: str
    version: str
    parameters: int
    clients: int
    survivors: int
    bits: int | None
    threads: int | None
    client_ns_per_param: float
    encode_ns_per_param: float
    protect_ns_per_param: float
    pack_ns_per_param: float | None
    client_elapsed_ns_per_param: float
    server_ns_per_param: float
    open_ns_per_param: float
    bytes_up_per_param: float
    bytes_down_per_param: float
    opener_bytes_down_per_param: float
    setup_bytes_per_client: int
    peak_mb: float
    peak_vectors: float
    exact: bool
    largest_error: float = 0.0
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """A JSON object; figures are rounded to what a timing can mean."""
        return {
            key: round(value, 4) if isinstance(value, float) and key != "largest_error" else value
            for key, value in asdict(self).items()
        }
