"""docs/protocol.md: its diagrams and lists are the code's, and what the code cites is there."""

from __future__ import annotations

import importlib.util
import re
from types import ModuleType

import pytest

from secfl.crypto.ckks_layout import choose_fields, largest_error
from secfl.crypto.masking_phases import CLIENT_STEPS
from secfl.crypto.wire import MessageType, Phase
from secfl.testing.adversaries import every_attack


@pytest.fixture(scope="module")
def draw(project) -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_states", project / "docs" / "draw_states.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def page(project) -> str:
    return (project / "docs" / "protocol.md").read_text(encoding="utf-8")


def section(page: str, number: int) -> str:
    start = page.index(f"\n## {number} ")
    return page[start : page.find("\n## ", start + 1)]


def test_the_diagrams_and_the_attacks_are_those_of_the_code(draw, page):
    assert draw.redrawn(page) == page, "run: python docs/draw_states.py"
    assert set(re.findall(r"<!-- states of: (.+?) -->", page)) == set(draw.diagrams())
    listed = section(page, 5)
    assert all(attack.name in listed for attack in every_attack())


def test_an_outdated_diagram_is_noticed(draw, page, tmp_path, monkeypatch):
    arrow = "share --> masked_input: DIRECTORY / SHARES"
    assert arrow in page
    copy = tmp_path / "protocol.md"
    monkeypatch.setattr(draw, "PAGE", copy)
    copy.write_text(page.replace(arrow, "share --> unmask: DIRECTORY / SHARES"), encoding="utf-8")
    assert draw.main(["--check"]) == 1
    assert draw.main([]) == 0
    assert draw.main(["--check"]) == 0
    assert copy.read_text(encoding="utf-8") == page


def test_every_arrow_of_a_table_is_drawn(draw):
    drawn = draw.diagrams()["masking client"]
    for phase, step in CLIENT_STEPS.items():
        assert f"    {draw.identifier(phase)} --> {draw.identifier(step.following)}: " in drawn
        assert f" / {step.sends.name}" in drawn


def test_sections_that_the_code_cites_are_about_that(project, page):
    topics = {1: "real vectors", 2: "Identities", 3: "Masking", 4: "CKKS", 5: "refused"}
    cited = set()
    for path in [*(project / "secfl").rglob("*.py"), *(project / "tests").rglob("*.py")]:
        text = re.sub(r"\s+", " ", path.read_text(encoding="utf-8"))
        cited |= {int(number) for number in re.findall(r"docs/protocol\.md, section (\d)", text)}
    assert cited >= {1, 2, 3, 4, 5}
    for number in cited:
        assert topics[number] in section(page, number).splitlines()[1]
    assert "\n6. A weighted mean" in section(page, 1)  # cited as point 6


def test_every_message_and_phase_is_described(page):
    for kind in MessageType:
        assert f"| {kind.value} | {kind.name} |" in page
    assert all(f"`{phase}`" in section(page, 2) for phase in Phase)


def test_figures_of_the_page(page):
    layout = section(page, 4)
    assert "room = min(50, 59 - ⌈log2 E⌉)" in layout
    for clients in (3, 10, 64):
        room = min(50, 59 - (largest_error(clients) - 1).bit_length())
        carry = (clients - 1).bit_length()
        for bits in range(2, room + 1):
            assert choose_fields(bits, clients=clients).fields == (room + carry) // (bits + carry)
