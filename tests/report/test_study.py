"""The page of a study: what it says, from which files, and what it refuses."""

from __future__ import annotations

import json
import shutil

import pytest

from secfl.cli.main import main
from secfl.errors import DataError
from secfl.report.study import study_page
from secfl.report.study_files import is_study, read_study


@pytest.fixture
def study(project, tmp_path):
    """A copy of a published study that a test may damage."""
    return shutil.copytree(project / "docs" / "results" / "universal", tmp_path / "study")


def change(study, **values) -> None:
    path = study / "table.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("name", ["dvt", "universal", "adaptive-dp", "dp-curve"])
def test_every_study_that_is_shipped_has_a_page_with_its_conclusions_and_its_runs(project, name):
    facts = read_study(project / "docs" / "results" / name)
    page = study_page(facts)
    assert facts.title in page
    assert facts.conclusions
    assert not [line for line in facts.conclusions if line.startswith("-") or "\n" in line]
    statuses = {status for _, status, _ in facts.runs}
    assert "closed" in statuses <= {"closed", "-"}, "a run that has a ledger has a closed one"
    assert all(len(row) == len(table.head) for table in facts.tables for row in table.rows)
    assert page.count("<img") == len(facts.pictures) > 0
    assert len(page.encode()) < 5_000_000


def test_a_column_that_says_nothing_is_left_out(study):
    heads = {name for table in read_study(study).tables for name in table.head}
    assert "published" not in heads
    assert {"measured", "mean"} <= heads


def test_the_page_of_the_optimisers_has_their_figures_and_claims(tmp_path):
    row = {
        "model": "unet", "arm": "FedAvg", "mean": 0.771, "spread": 0.004, "worst": 0.75,
        "per_site": {"a": 0.75, "b": 0.79}, "below_pooled": 0.01, "claim": True,
    }  # fmt: skip
    rows = [row, row | {"arm": "pooled", "mean": 0.781, "below_pooled": 0.0, "claim": None}]
    document = {"format_version": 1, "data": "fundus", "rows": rows}
    (tmp_path / "optimisation.json").write_text(json.dumps(document))
    assert main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "FedAvg with unet is 0.010 below pooled data in mean Dice: the claim holds." in page
    assert "<td>0.771</td>" in page


def test_words_of_a_study_cannot_become_markup(study):
    hostile = "`<script>alert(1)</script>` <img src=x onerror=alert(1)>"
    change(study, title=hostile, conclusions=[hostile], command=hostile)
    page = study_page(read_study(study))
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "<code>&lt;script&gt;" in page


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"format_version": 3}, "newer than this secfl reads"),
        ({"rows": [{"group": "x"}]}, "damaged"),
        ({"conclusions": 7}, "damaged"),
    ],
)
def test_a_damaged_or_newer_study_is_refused_by_name(study, values, expected):
    change(study, **values)
    with pytest.raises(DataError, match=expected):
        read_study(study)


def test_a_folder_of_neither_kind_is_no_study(tmp_path, capsys):
    assert not is_study(tmp_path)
    assert main(["report", str(tmp_path)]) == 2
    assert "expected a run directory" in capsys.readouterr().err
