"""Secure aggregation: bytes in, bytes out. Start with `secfl.crypto.aggregation`."""
