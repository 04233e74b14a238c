"""A verifier written from docs/ledger.md alone: nothing of secfl is imported.

It shares libraries with secfl only below the level of the page: JSON canonicalisation, JSON Schema, Ed25519,
and dp-accounting for privacy loss distributions.
"""

import collections
import functools
import hashlib
import json
import math
import struct

import dp_accounting
import jsonschema
import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from dp_accounting.pld import PLDAccountant

PURPOSES = {"checkpoint": b"ledger-checkpoint", "close": b"ledger-close"}


class Wrong(Exception):
    """The file does not verify; ``entry`` is the first wrong one."""

    def __init__(self, entry, reason):
        super().__init__(f"entry {entry}: {reason}")
        self.entry = entry


# --- Lines, hashes, chain


def _once(pairs):
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a member occurs twice")
    return dict(pairs)


def _no(name):
    raise ValueError(name)


def read(data, schema):
    """Entries with their hashes, checked for form, schema, marks, hash and chain."""
    judge = jsonschema.Draft202012Validator(schema)
    if not data.endswith(b"\n"):
        raise Wrong(data.count(b"\n"), "torn")
    entries, previous = [], "0" * 64
    for index, line in enumerate(data[:-1].split(b"\n")):
        try:
            entry = json.loads(line.decode(), object_pairs_hook=_once, parse_constant=_no)
            good = rfc8785.dumps(entry) == line and len(line) <= 1 << 20
        except (ValueError, RecursionError, rfc8785.CanonicalizationError) as error:
            raise Wrong(index, str(error)) from None
        if not good or not judge.is_valid(entry):
            raise Wrong(index, "canonical form or schema")
        body = entry["body"]
        marks = "".join(hashlib.sha256(rfc8785.dumps(body[name])).hexdigest()[:8] for name in sorted(body))
        without = {name: value for name, value in entry.items() if name != "hash"}
        digest = hashlib.sha256(b"\0" + rfc8785.dumps(without)).hexdigest()
        if (entry["index"], entry["previous"], entry["marks"], entry["hash"]) != (
            index,
            previous,
            marks,
            digest,
        ):
            raise Wrong(index, "index, previous, marks or hash")
        previous = digest
        entries.append(entry)
    return entries


def root_of(leaves):
    """RFC 9162, section 2.1.1."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1 << ((len(leaves) - 1).bit_length() - 1)
    return hashlib.sha256(b"\1" + root_of(leaves[:split]) + root_of(leaves[split:])).digest()


def join(*parts):
    return b"".join(struct.pack("<Q", len(part)) + part for part in parts)


# --- Rules between entries


def replay(entries):
    """What the entries say together."""
    header = entries[0]["body"]
    check_header(header)
    state = {"header": header, "terms": {}, "reserved": {}, "settled": {}, "torn": [], "closed": False}
    state |= {"latest": (-1, -1), "latest_terms": None}
    for index, entry in enumerate(entries):
        if (index == 0) != (entry["type"] == "open") or state["closed"]:
            raise Wrong(index, "type")
        STEPS[entry["type"]](state, index, entry, entries)
    return state


def check_header(header):
    names = sorted(header["keys"])
    rows = [join(name.encode(), bytes.fromhex(header["keys"][name])) for name in names]
    manifest = hashlib.sha256(join(b"secfl/v1", b"manifest", *rows)).hexdigest()
    if header["cohort"] != names or header["manifest_digest"] != manifest:
        raise Wrong(0, "cohort or manifest")
    if len(set(header["keys"].values())) != len(names):
        raise Wrong(0, "two clients with one key")
    if header["threshold"] > len(names) or "aggregator" in names:
        raise Wrong(0, "threshold or name")


def step_terms(state, index, entry, _):
    check_terms(index, entry["body"], state["header"])
    state["terms"][index] = entry["body"]
    state["latest_terms"] = index


def step_reserve(state, index, entry, _):
    body = entry["body"]
    attempt = (body["round"], body["attempt"])
    if body["terms"] not in state["terms"] or attempt <= state["latest"]:
        raise Wrong(index, "terms, round or attempt")
    state["latest"] = attempt
    state["reserved"][index] = body["terms"]


def step_settle(state, index, entry, _):
    body, header = entry["body"], state["header"]
    where = body["reservation"]
    if where not in state["reserved"] or where in state["settled"]:
        raise Wrong(index, "reservation")
    if entry["type"] == "commit":
        there = body["survivors"]
        if (
            there != sorted(there)
            or not set(there) <= set(header["keys"])
            or len(there) < header["threshold"]
        ):
            raise Wrong(index, "survivors")
    state["settled"][where] = (entry["type"], body)


def step_recovered(state, index, entry, _):
    if entry["body"]["terms"] != state["latest_terms"]:
        raise Wrong(index, "terms")
    state["torn"].append(state["latest_terms"])


def step_sign(state, index, entry, entries):
    check_signatures(index, entry, entries[:index], state["header"])
    if entry["type"] == "close":
        state["closed"] = True
        if len(entry["body"]["signers"]) < state["header"]["threshold"]:
            raise Wrong(index, "signers")


STEPS = {
    "open": lambda *_: None,
    "terms": step_terms,
    "reserve": step_reserve,
    "commit": step_settle,
    "abort": step_settle,
    "recovered": step_recovered,
    "checkpoint": step_sign,
    "close": step_sign,
}


def check_signatures(index, entry, before, header):
    body = entry["body"]
    root = root_of([bytes.fromhex(other["hash"]) for other in before])
    signers = body["signers"]
    if body["size"] != index or body["root"] != root.hex() or signers != sorted(set(signers)):
        raise Wrong(index, "size, root or signers")
    if set(body["signatures"]) != set(signers):
        raise Wrong(index, "signatures")
    message = join(
        b"secfl/v1",
        b"signature",
        PURPOSES[entry["type"]],
        bytes.fromhex(header["run_id"]),
        struct.pack("<Q", index),
        root,
        entry["time"].encode(),
        body.get("reason", "").encode(),
        join(*(name.encode() for name in signers)),
    )
    for name in signers:
        try:
            key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(header["keys"][name]))
            key.verify(bytes.fromhex(body["signatures"][name]), message)
        except (KeyError, ValueError, InvalidSignature):
            raise Wrong(index, f"signature of {name}") from None


def check_terms(index, body, header):
    guarantee, n, t = body["guarantee"], len(header["cohort"]), header["threshold"]
    stated = tuple(guarantee[name] for name in ("cohort_size", "threshold", "scheme", "key_mode"))
    if stated != (n, t, header["scheme"], header["key_mode"]):
        raise Wrong(index, "guarantee")
    scheme, mode = guarantee["scheme"], guarantee["key_mode"]
    modes = {"plain": ["none"], "masking": ["pairwise"], "ckks": ["sum-key", "shared"]}
    if mode not in modes.get(scheme, [mode]):
        raise Wrong(index, "key mode")
    if mode == "shared" and guarantee["client_with_network"] != "every_update":
        raise Wrong(index, "a client with the shared key")
    if scheme in {"masking", "ckks"} and (
        not guarantee["assumptions"] or guarantee["advantage_log2"] is None
    ):
        raise Wrong(index, "cryptography without assumptions or advantage")
    for behaviour in ("curious", "malicious"):
        known = known_bound(guarantee, behaviour, guarantee["survivors"])
        if known is not None and guarantee[f"{behaviour}_colluders"] > known:
            raise Wrong(index, "guarantee claims too much")
    for leaf in leaves(body["event"], index=index):
        if leaf["kind"] != "non_private":
            check_noise(index, leaf, header)


def check_noise(index, leaf, header):
    n, rates, weights = len(header["cohort"]), leaf.get("site_rates"), leaf.get("weights")
    share = leaf["noise_multiplier"] * leaf["sensitivity"] / math.sqrt(leaf["shares"])
    if weights is not None:
        share = min(widths(leaf).values())
    wrong = (
        header["unit"] is None
        or (weights is not None and (set(weights) != set(header["keys"]) or leaf["shares"] != n))
        or header["relation"] is None
        or leaf["shares"] > n
        or (leaf["placement"] != "distributed" and leaf["shares"] != 1)
        or (rates is not None and set(rates) != set(header["keys"]))
        or (rates is not None and max(rates.values()) != leaf["sampling_rate"])
        or (leaf["sampling"] == "none" and (leaf["sampling_rate"] != 1 or rates is not None))
        or (leaf["sampling"] == "poisson" and (header["relation"] == "replace_one" or header["unit"] == "client"))
        or (leaf["family"] != "gaussian" and leaf["sensitivity"] != int(leaf["sensitivity"]))
        or (leaf["family"] == "discrete_gaussian" and share < 4)
        or leaf["sampler_error"] >= 1
    )  # fmt: skip
    if wrong:
        raise Wrong(index, "event")


# --- From entries to ε


def leaves(event, level=1, index=None):
    if level > 16:
        raise Wrong(index, "nested too deep")
    if event["kind"] == "composed":
        return [leaf for part in event["events"] for leaf in leaves(part, level + 1, index)]
    return [event]


def known_bound(guarantee, behaviour, s):
    n, t = guarantee["cohort_size"], guarantee["threshold"]
    if guarantee["scheme"] == "plain":
        return -1
    if guarantee["key_mode"] == "shared":
        return 0 if behaviour == "curious" else -1
    if (guarantee["scheme"], guarantee["key_mode"]) in {("masking", "pairwise"), ("ckks", "sum-key")}:
        return max(-1, min(t - 1, s - 2) if behaviour == "curious" else min(2 * t - n - 1, t - 2))
    return None


def bound(guarantee, behaviour, s):
    claimed = guarantee[f"{behaviour}_colluders"]
    if claimed == known_bound(guarantee, behaviour, guarantee["survivors"]):
        claimed = known_bound(guarantee, behaviour, s)
    return min(claimed, s - 2)


def sees(guarantee, row, s):
    view, behaviour, k = row
    if view == "crypto_broken":
        return "every_update"
    network = guarantee["network_sees"]
    if view == "network":
        return network
    if view in {"aggregator", "aggregator_colluders"}:
        everything = k > bound(guarantee, behaviour, s) or network == "every_update"
    elif view == "client":
        everything = guarantee["key_mode"] == "shared"
        if behaviour == "malicious":
            everything |= "every_update" in {network, guarantee["client_with_network"]}
    else:
        everything = False
    return "every_update" if everything else "sum"


def unknown_shares(row, s, t):
    view, behaviour, k = row
    if view.startswith("aggregator"):
        return (t if behaviour == "malicious" else s) - k
    return s - 1 if view == "client" else s


def rounds_of(state):
    """(terms, survivors, opened, total variation) of everything that counts."""
    t = state["header"]["threshold"]
    for index, terms in state["reserved"].items():
        kind, body = state["settled"].get(index, (None, None))
        if kind == "commit":
            yield terms, len(body["survivors"]), True, body["total_variation"]
        elif kind is None or body["exposure"] == "shares_sent":
            yield terms, t, True, 0.0
        elif body["exposure"] == "inputs_sent":
            yield terms, t, False, 0.0
    for terms in state["torn"]:
        if terms is not None:
            yield terms, t, True, 0.0


def epsilon(state, row, delta, site=None):
    """ε of one row, for one site's units where sites differ; ``None`` without a promise. Gaussian families only."""
    gaussians, remainder, error = [], 0.0, 0.0
    for terms, s, opened, variation in rounds_of(state):
        body = state["terms"][terms]
        visible = sees(body["guarantee"], row, s)
        if row[0] not in {"final_model", "crypto_broken"} and visible != "every_update":
            error += (
                2.0 ** body["guarantee"]["advantage_log2"] if body["guarantee"]["advantage_log2"] else 0.0
            )
        if visible == "nothing" or (visible == "sum" and not opened):
            continue
        planned = 0.0
        for leaf in leaves(body["event"]):
            central = leaf["kind"] == "noise" and leaf["placement"] == "central"
            outside = visible == "sum" and row[0] in {"final_model", "client"}
            if row[:2] == ("client", "malicious") and body["guarantee"]["network_sees"] != "nothing":
                outside = False
            if leaf["kind"] == "non_private" or (central and not outside):
                return None
            r = (
                1
                if visible == "every_update"
                else max(1, unknown_shares(row, s, state["header"]["threshold"]))
            )
            z, each = gaussian_of(leaf, r, site)
            remainder += leaf["count"] * each
            rate = (leaf.get("site_rates") or {}).get(site, leaf["sampling_rate"])
            gaussians += [(z, rate if leaf["sampling"] == "poisson" else 1.0)] * leaf["count"]
            drawn = max(s, leaf["shares"]) if leaf["placement"] == "distributed" else 1
            planned += leaf["count"] * leaf["dimension"] * drawn * leaf["sampler_error"]
        error += max(variation, planned)
    if state["header"]["unit"] is None:
        return None
    return with_errors(gaussians, delta, remainder, error) if gaussians else 0.0


def widths(leaf):
    """Of each client's share, grid units."""
    norm = math.sqrt(sum(weight**2 for weight in leaf["weights"].values()))
    return {
        name: leaf["noise_multiplier"] * leaf["sensitivity"] * weight / norm
        for name, weight in leaf["weights"].items()
    }


def remainder_of(leaf, smallest, r):
    tau = sum(math.exp(-2 * math.pi**2 * smallest**2 * i / (i + 1)) for i in range(1, r))
    return leaf["dimension"] * (4.1 * math.exp(-8 * math.pi**2) + 10 * tau)


def gaussian_by_site(leaf, r, site):
    shares, weights = widths(leaf), leaf["weights"]
    others = sorted(width for name, width in shares.items() if name != site)
    variance = shares[site] ** 2 + sum(width**2 for width in others[: r - 1])
    sensitivity = math.floor(leaf["sensitivity"] * weights[site] / max(weights.values()))
    return math.sqrt(variance - 4) / sensitivity, remainder_of(leaf, min(shares.values()), r)


def gaussian_of(leaf, r, site=None):
    """The continuous Gaussian that stands for a mechanism with r unknown shares, and R of one release."""
    if leaf["kind"] == "site_noise":
        return gaussian_by_site(leaf, r, site)
    distributed = leaf["placement"] == "distributed"
    z = leaf["noise_multiplier"] * math.sqrt(r / leaf["shares"] if distributed else 1.0)
    if leaf["family"] == "gaussian":
        return z, 0.0
    sensitivity = leaf["sensitivity"]
    sigma_1 = leaf["noise_multiplier"] * sensitivity / math.sqrt(leaf["shares"])
    each = remainder_of(leaf, sigma_1, r if distributed else 1)
    return math.sqrt((z * sensitivity) ** 2 - 4) / sensitivity, each


def with_errors(gaussians, delta, remainder, error):
    found, before = pld_epsilon(gaussians, delta), -1.0
    while abs(found - before) > 1e-5:
        rest = delta - (1 + math.exp(found)) * error
        if rest <= 0:
            return None
        before = found
        found = pld_epsilon(gaussians, rest * math.exp(-remainder)) + 2 * remainder
    return found


def pld_epsilon(gaussians, delta):
    """ε of Gaussians (multiplier, sampling rate) by dp-accounting."""
    return composed(tuple(sorted(collections.Counter(gaussians).items()))).get_epsilon(delta)


@functools.lru_cache(maxsize=256)
def composed(counts):
    # A coarser grid for larger losses, which would need millions of points.
    rough = sum(count / z**2 for (z, _), count in counts)
    interval = max(5e-4, 5e-5 * rough)
    accountant = PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, interval)
    for (z, rate), count in counts:
        event = dp_accounting.GaussianDpEvent(z)
        if rate < 1:
            event = dp_accounting.PoissonSampledDpEvent(rate, event)
        accountant.compose(event, count)
    return accountant


def verify(data, schema):
    """The state of a ledger that verifies; `Wrong` otherwise."""
    return replay(read(data, schema))
