"""Whatever is changed in a closed ledger is found, and the message names the entry.

Three attackers: one who edits bytes; one who edits a field and mends the entry's own hash and marks; one who
mends the whole chain, and only lacks the clients' signing keys.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secfl.errors import LedgerCorrupted
from secfl.ledger import PrivacyLedger
from secfl.ledger.canonical import canonical, parse_line
from secfl.ledger.entry import GENESIS, encode_entry
from secfl.ledger.merkle import leaf_hash
from secfl.ledger.reader import _COMMIT_LINE, _RESERVE_LINE, replay, skim
from secfl.ledger.verify import load, verify_file

SHARED_FIXTURES = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 9),
    st.sampled_from([0.5, 1e-9, 2**53 - 1, "", "a", "0" * 64, "f" * 64, "00" * 16, "masking", "curious"]),
    st.just([]),
    st.just({}),
    st.just(["a", "b", "c", "d"]),
)


def leaf_places(value, path=()):
    """Every place below a JSON value, containers included."""
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, child in children:
        yield (*path, key)
        yield from leaf_places(child, (*path, key))


def at(value, path):
    for key in path:
        value = value[key]
    return value


def nudge(value, data):
    """Another value, often of the same kind, so that the schema accepts it."""
    options = [VALUES]
    if isinstance(value, bool):
        options = [st.just(not value)]
    elif isinstance(value, int):
        options.append(st.just(value + 1))
    elif isinstance(value, float):
        options.append(st.just(value * 1.5))
    elif isinstance(value, str) and value:
        flipped = ("1" if value[0] == "0" else "0") + value[1:]
        options += [st.just(flipped), st.just(value + "a"), st.just(value[::-1])]
    elif isinstance(value, list) and value:
        options += [st.just(value[1:]), st.just(value[::-1]), st.just([*value, value[0]])]
    changed = data.draw(st.one_of(*options))
    return copy.deepcopy(changed)


def mutate_entry(entry, data):
    """Change, remove or add one member anywhere in an entry, its ``hash`` and so on included."""
    path = data.draw(st.sampled_from(list(leaf_places(entry))))
    parent, key = at(entry, path[:-1]), path[-1]
    match data.draw(st.sampled_from(["change", "change", "change", "remove", "add"])):
        case "change":
            parent[key] = nudge(parent[key], data)
        case "remove":
            del parent[key]
        case "add" if isinstance(parent, dict):
            parent["added"] = data.draw(VALUES)
        case "add":
            parent.append(copy.deepcopy(parent[0]))


def mend(entry, previous: str) -> tuple[bytes, str] | None:
    """A line with marks, hash and chain made right for the content, if it still has the members for that."""
    try:
        line, digest = encode_entry(
            index=entry["index"],
            kind=entry["type"],
            body=entry["body"],
            time=entry["time"],
            previous=previous,
        )
    except (KeyError, AttributeError, TypeError):
        return None
    return line, digest.hex()


def verdict_on(path: Path, lines: list[bytes]) -> LedgerCorrupted | None:
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    try:
        load(path)
    except LedgerCorrupted as error:
        return error
    return None


@pytest.fixture
def lines(every_entry_type) -> list[bytes]:
    return every_entry_type.read_bytes().splitlines()


def edit_a_field(lines, path, data) -> None:
    """The first attacker, and the second."""
    victim = data.draw(st.integers(0, len(lines) - 1))
    entry = parse_line(lines[victim])
    before = copy.deepcopy(entry)
    mutate_entry(entry, data)
    if canonical(entry) == canonical(before):
        return
    mended = None
    if data.draw(st.booleans()) and isinstance(entry.get("previous"), str):
        mended = mend(entry, entry["previous"])
    line = canonical(entry) if mended is None else mended[0]
    if line == lines[victim]:
        return
    found = verdict_on(path, [*lines[:victim], line, *lines[victim + 1 :]])
    assert found is not None, (victim, line)
    # A mended entry is right in itself; then the next one does not follow it, or a signature does not hold.
    allowed = {victim} if mended is None else {victim, victim + 1, *signed(lines, victim)}
    assert found.entry in allowed, (victim, found)
    assert str(found.entry) in str(found)


def signed(lines, victim) -> list[int]:
    """The next entry whose signatures cover the victim."""
    kinds = [parse_line(line)["type"] for line in lines]
    return [index for index in range(victim, len(lines)) if kinds[index] in {"checkpoint", "close"}][:1]


def move_entries(lines, path, data) -> None:
    """Remove, repeat, swap, duplicate elsewhere, or cut off."""
    count = len(lines)
    first = data.draw(st.integers(0, count - 1))
    second = data.draw(st.integers(0, count - 1))
    changed = list(lines)
    match data.draw(st.sampled_from(["remove", "repeat", "swap", "copy", "cut"])):
        case "remove":
            del changed[first]
            expected = {first}
        case "repeat":
            changed.insert(first, lines[first])
            expected = {first + 1}
        case "swap":
            changed[first], changed[second] = lines[second], lines[first]
            expected = {min(first, second)}
        case "copy":
            changed[first] = lines[second]
            expected = {first}
        case "cut":
            cut = data.draw(st.integers(1, len(lines[-1]) - 1))  # at the line's start the file would be open
            path.write_bytes(b"\n".join(lines)[:-cut])
            with pytest.raises(LedgerCorrupted) as caught:
                load(path)
            assert caught.value.entry == count - 1
            return
    if changed == lines:
        return
    found = verdict_on(path, changed)
    if first == count - 1 and changed == lines[:-1]:
        # Cut off at a line: open, not wrong. A kept checkpoint tells (test_verify.py).
        assert found is None
        assert verify_file(path).status == "open"
        return
    assert found is not None
    assert found.entry in expected


def mend_everything(lines, path, data) -> None:
    """The third attacker: every hash after the change is made right, signatures are copied."""
    victim = data.draw(st.integers(0, len(lines) - 1))
    entries = [parse_line(line) for line in lines]
    before = copy.deepcopy(entries)
    place = data.draw(st.sampled_from([*leaf_places({"body": entries[victim]["body"]}), ("time",)]))
    parent = at(entries[victim], place[:-1])
    parent[place[-1]] = nudge(parent[place[-1]], data)
    if canonical(entries) == canonical(before):
        return
    previous, mended = GENESIS, []
    for entry in entries:
        result = mend(entry, previous)
        if result is None:
            return
        mended.append(result[0])
        previous = result[1]
    found = verdict_on(path, mended)
    assert found is not None, (victim, place)
    # Wrong in itself, contradicted by a later entry, or not what was signed.
    assert victim <= found.entry <= max(signed(lines, victim))


def flip_bytes(lines, path, data) -> None:
    content = b"".join(line + b"\n" for line in lines)
    place = data.draw(st.integers(0, len(content) - 1))
    byte = data.draw(st.integers(0, 255))
    damaged = content[:place] + bytes([byte]) + content[place + 1 :]
    if damaged == content:
        return
    path.write_bytes(damaged)
    with pytest.raises(LedgerCorrupted) as caught:
        load(path)
    assert caught.value.entry == content[:place].count(b"\n")


ATTACKS = [edit_a_field, move_entries, mend_everything, flip_bytes]


@pytest.mark.parametrize("attack", ATTACKS)
@settings(max_examples=150, suppress_health_check=SHARED_FIXTURES)
@given(st.data())
def test_every_change_is_found(attack, lines, tmp_path, data):
    attack(lines, tmp_path / "tampered.jsonl", data)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("attack", ATTACKS)
@settings(max_examples=4000, suppress_health_check=SHARED_FIXTURES)
@given(st.data())
def test_sixteen_thousand_changes_are_found(attack, lines, tmp_path, data):
    attack(lines, tmp_path / "tampered.jsonl", data)


def test_each_body_field_of_each_type_is_named(lines, tmp_path):
    """Without mending, the message names the very field."""
    named = set()
    for victim, line in enumerate(lines):
        entry = parse_line(line)
        for name, value in entry["body"].items():
            changed = copy.deepcopy(entry)
            if isinstance(value, str):
                changed["body"][name] = ("1" if value[:1] == "0" else "0") + value[1:]
            elif isinstance(value, bool):
                changed["body"][name] = not value
            elif isinstance(value, int | float):
                changed["body"][name] = value / 2 if isinstance(value, float) else value + 1
            elif value is None:
                changed["body"][name] = 0.5
            elif isinstance(value, list):
                changed["body"][name] = [*value, "x"]
            else:
                changed["body"][name] = value | {"x": "00" * 32}
            found = verdict_on(
                tmp_path / "x.jsonl", [*lines[:victim], canonical(changed), *lines[victim + 1 :]]
            )
            assert found.entry == victim
            assert f"body.{name}" in str(found), (entry["type"], name, str(found))
            named.add((entry["type"], name))
    bodies = {parse_line(line)["type"]: parse_line(line)["body"] for line in lines}
    assert len(bodies) == 8
    assert len(named) == sum(len(body) for body in bodies.values())


@pytest.mark.parametrize("name", ["index", "type", "time", "previous", "marks", "hash"])
def test_each_outer_field_is_named(lines, tmp_path, name):
    other = {
        "index": lambda value: value + 1,
        "type": lambda value: "abort" if value != "abort" else "commit",
        "time": lambda value: value.replace("03", "13", 1),
    }
    for victim, line in enumerate(lines):
        entry = parse_line(line)
        flip = other.get(name, lambda value: ("1" if value[0] == "0" else "0") + value[1:])
        entry[name] = flip(entry[name])
        found = verdict_on(tmp_path / "x.jsonl", [*lines[:victim], canonical(entry), *lines[victim + 1 :]])
        assert found.entry == victim
        # Another type makes another body; the message then names the first member that is missing.
        assert name in str(found) or (name == "type" and "body." in str(found))


def test_a_quick_look_finds_the_same(lines, tmp_path):
    """Skimming checks less, but what it lets through has the hashes, chain and signatures of the real one."""
    whole = b"".join(line + b"\n" for line in lines)
    assert skim(whole).state.tree.root() == replay(whole).state.tree.root()
    for victim, line in enumerate(lines):
        for damaged in (
            line.replace(b":", b": ", 1),
            line[:-2] + b"x" + line[-1:],
            line.replace(b"a", b"b", 1),
        ):
            if damaged == line:
                continue
            changed = b"".join(other + b"\n" for other in [*lines[:victim], damaged, *lines[victim + 1 :]])
            with pytest.raises(LedgerCorrupted) as caught:
                skim(changed)
            assert caught.value.entry == victim


def test_a_quick_look_finds_every_changed_figure(lines):
    """Reservations and commits are taken apart by patterns there, so damage that fits a pattern must be found too."""
    for victim, line in enumerate(lines):
        if parse_line(line)["type"] not in {"reserve", "commit"}:
            continue
        figures = [place for place, byte in enumerate(line) if chr(byte).isdigit()]
        assert len(figures) > 100
        for place in figures[::5]:
            damaged = line[:place] + (b"1" if line[place : place + 1] != b"1" else b"2") + line[place + 1 :]
            changed = b"".join(other + b"\n" for other in [*lines[:victim], damaged, *lines[victim + 1 :]])
            with pytest.raises(LedgerCorrupted) as caught:
                skim(changed)
            assert caught.value.entry == victim


def test_nothing_stands_behind_an_entry(lines):
    """The writer made the hash over what follows as well; the full reading would not see the same entry."""
    entry = parse_line(lines[0])
    marked = f',"hash":"{entry["hash"]}"'.encode()
    digest = leaf_hash(lines[0].replace(marked, b"") + b"{}")
    forged = lines[0].replace(marked, f',"hash":"{digest.hex()}"'.encode()) + b"{}\n"
    with pytest.raises(LedgerCorrupted) as caught:
        skim(forged)
    assert caught.value.entry == 0


def test_a_line_in_another_spelling_is_refused(lines, tmp_path):
    spaced = lines[3].replace(b'"index":3', b'"index": 3')
    found = verdict_on(tmp_path / "x.jsonl", [*lines[:3], spaced, *lines[4:]])
    assert (found.entry, "canonical" in str(found)) == (3, True)


def test_a_newer_format_is_refused_by_name(lines, tmp_path):
    entry = parse_line(lines[0])
    entry["body"]["format_version"] = 2
    line, _ = mend(entry, GENESIS)
    found = verdict_on(tmp_path / "x.jsonl", [line, *lines[1:]])
    assert "format_version: 2 is newer" in str(found)


def test_keys_of_the_attackers_own_are_found_by_who_pinned_the_real_ones(workshop, tmp_path):
    forger = workshop.variant(seed=99)
    path = tmp_path / "forged.jsonl"
    with PrivacyLedger.create(path, forger.header()) as ledger:
        ledger.close(co_signers=forger.identities)
    assert verify_file(path).status == "closed"  # consistent with itself
    with pytest.raises(LedgerCorrupted, match="keys"):
        verify_file(path, directory=workshop.directory)


def test_the_quick_look_reads_each_line_as_the_full_one(lines):
    """Reservations and commits are read by patterns there; the patterns must fit what the writer writes."""
    whole = b"".join(line + b"\n" for line in lines)
    quick, full = skim(whole).state, replay(whole).state
    assert quick.reservations == full.reservations
    assert [(commit.survivors, commit.total_variation) for commit in quick.commits.values()] == [
        (commit.survivors, commit.total_variation) for commit in full.commits.values()
    ]
    kinds = [parse_line(line)["type"] for line in lines]
    for kind, line in zip(kinds, lines, strict=True):
        assert (_RESERVE_LINE.fullmatch(line) is not None) == (kind == "reserve")
        assert (_COMMIT_LINE.fullmatch(line) is not None) == (kind == "commit")
