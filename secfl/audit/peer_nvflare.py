"""Looks at who holds the key of NVFlare's homomorphic encryption; runs in NVFlare's environment alone.

Usage: ``python -I peer_nvflare.py``; prints one JSON document. Contexts are made by its provisioning class with its
defaults; one site's vector is then opened with another site's context.
"""

from __future__ import annotations

import json
from importlib.metadata import version

import tenseal as ts
from nvflare.lighter.impl.he import HEBuilder


def main() -> None:
    """Print the facts."""
    builder = HEBuilder()
    builder.initialize(None, None)
    kits = [builder.get_serialized_context(is_client=True) for _ in range(2)]
    sites = [ts.context_from(kit) for kit in kits]
    server = ts.context_from(builder.get_serialized_context())
    values = [0.25, -1.5, 3.0]
    sent = ts.ckks_vector(sites[0], values).serialize()
    opened = ts.ckks_vector_from(sites[1], sent).decrypt()
    facts = {
        "library": "nvflare",
        "version": version("nvflare"),
        "tenseal": version("tenseal"),
        "every_client_context_has_the_secret_key": all(site.has_secret_key() for site in sites),
        "client_contexts_are_byte_identical": kits[0] == kits[1],
        "server_context_has_the_secret_key": server.has_secret_key(),
        "one_site_opens_another_sites_update": max(abs(a - b) for a, b in zip(values, opened, strict=True))
        < 1e-3,
    }
    print(json.dumps(facts))  # noqa: T201 - the document that the parent process reads


if __name__ == "__main__":
    main()
