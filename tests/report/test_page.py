"""The report of a run: what it says, and what it must not."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest

from secfl.audit.membership import membership_attack
from secfl.cli.main import main
from secfl.errors import ConfigError, DataError
from secfl.ledger.verify import verify_file
from secfl.report.facts import read_run
from secfl.report.page import LARGEST, run_page, write_page
from secfl.report.sentences import Tone, verdict_lines


class Page(HTMLParser):
    """Collects what a test asks about."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._hidden = 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._hidden += tag in {"script", "style"}

    def handle_endtag(self, tag):
        self._hidden -= tag in {"script", "style"}

    def handle_data(self, data):
        if not self._hidden:
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def private_page(private_run) -> str:
    return run_page(read_run(private_run))


@pytest.fixture
def copy(private_run, tmp_path):
    """A copy of the private run that a test may damage."""
    run = tmp_path / "private"
    shutil.copytree(private_run, run)
    return run


class TestWhatItSays:
    def test_every_adversary_of_the_ledger_has_its_row_with_its_epsilon(self, private_run, private_page):
        rows = verify_file(private_run / "ledger.jsonl").statements
        shown = re.findall(r'data-value="([^"]+)"', private_page)
        assert [float(value) for value in shown] == [row.epsilon for row in rows]

    def test_the_verdict_comes_first_and_tells_the_dice_of_the_worst_site(self, private_run, private_page):
        summary = json.loads((private_run / "summary.json").read_text())
        words = Page(private_page).words
        dice = summary["evaluation_only"]["dice"]
        assert words.index("Verdict") < words.index("Who could learn what")
        assert f"at the worst site, {dice['worst_site']}, {dice['worst']:.3f}" in words
        assert "verifies and is closed" in words

    def test_without_noise_it_says_that_nothing_limits_what_is_learned(self, open_run):
        facts = read_run(open_run)
        (line,) = [line for line in verdict_lines(facts) if line.topic == "privacy"]
        assert line.tone is Tone.CARE
        assert "no differential privacy" in line.text
        assert facts.history is None
        assert "none" in Page(run_page(facts)).words

    def test_drop_outs_and_references_are_shown(self, open_run):
        facts = read_run(open_run)
        lost = [row["round"] + 1 for row in facts.metrics if row["dropped"]]
        assert lost, "the seed of this fixture must lose somebody"
        words = Page(run_page(facts)).words
        assert "pooled data (no privacy)" in words
        for site in facts.metrics[lost[0] - 1]["dropped"]:
            assert f"{lost[0]} {site}" in words

    def test_epsilon_over_the_rounds_ends_at_the_ledgers_value(self, private_run):
        facts = read_run(private_run)
        final = {row.epsilon for row in facts.verdict.statements}
        for values in facts.history.lines.values():
            assert list(values) == sorted(values)
            assert any(abs(values[-1] - value) < 1e-3 for value in final)

    def test_what_the_run_was_made_with_is_told_apart_from_where_the_page_was_made(self, copy):
        made = json.loads((copy / "summary.json").read_text())["environment"]
        assert {"numpy", "torch"} <= set(made["libraries"])
        summary = json.loads((copy / "summary.json").read_text())
        summary["environment"]["libraries"]["torch"] = "1.2.3-elsewhere"
        (copy / "summary.json").write_text(json.dumps(summary))
        assert "torch 1.2.3-elsewhere" in Page(run_page(read_run(copy))).words

    def test_a_run_under_way_is_called_unfinished(self, copy):
        (copy / "summary.json").unlink()
        assert "has not finished" in Page(run_page(read_run(copy))).words

    def test_an_audit_is_shown_beside_the_ledger(self, private_run, tmp_path):
        found = tmp_path / "audit.json"
        finding = {"name": "uniform", "flagged": True, "skipped": False, "statistic": "chi-square 99"}
        document = {"format_version": 1, "what": "transcript", "verdict": "REFUTED", "findings": [finding]}
        found.write_text(json.dumps(document))
        facts = read_run(private_run, audits=[found])
        assert any(line.tone is Tone.BAD and "REFUTED" in line.text for line in verdict_lines(facts))
        assert "chi-square 99" in Page(run_page(facts)).words

    def test_a_membership_attack_is_shown_by_its_figures(self, private_run, tmp_path):
        found = tmp_path / "membership.json"
        losses = np.linspace(0.0, 1.0, 400)
        found.write_text(json.dumps({"format_version": 1, **membership_attack(losses, losses).to_dict()}))
        facts = read_run(private_run, audits=[found])
        assert "members found 1.0% (0.3% to 2.5%) at 1% false alarms" in Page(run_page(facts)).words


class TestADamagedLedger:
    def test_it_is_said_on_top_and_ends_with_exit_code_5(self, copy, capsys):
        ledger = copy / "ledger.jsonl"
        text = ledger.read_text()
        ledger.write_text(text.replace('"survivors"', '"survivor"', 1))
        assert main(["report", str(copy)]) == 5
        assert capsys.readouterr().err.startswith("error: ")
        page = Page((copy / "report.html").read_text())
        assert "does NOT verify" in page.words
        assert not [attributes for _, attributes in page.tags if "data-value" in attributes]

    def test_a_missing_ledger_is_no_better(self, copy):
        (copy / "ledger.jsonl").unlink()
        assert main(["report", str(copy), "--out", str(copy / "x.html")]) == 5


class TestCohorts:
    """In a federation of unlike models each averaged family has a ledger of its own."""

    def test_rows_name_the_family_of_every_site_and_its_cohort(self, unlike_run):
        words = Page(run_page(read_run(unlike_run))).words
        assert "global student" in words
        for site, family in (("clinic-1", "cnn"), ("clinic-4", "unet")):
            assert f"{site}'s model ({family}) in the federation" in words
            assert f"{site} ({family}) alone" in words
        assert "The ledger of the sites that average cnn verifies and is closed" in words

    def test_each_ledger_is_verified_and_named(self, copy):
        cohort = copy / "cohorts" / "cnn"
        cohort.mkdir(parents=True)
        shutil.copy(copy / "ledger.jsonl", cohort / "ledger.jsonl")
        words = Page(run_page(read_run(copy))).words
        assert "The ledger of the sites that average cnn verifies and is closed" in words

    def test_one_that_does_not_verify_is_an_alarm_and_exit_code_5(self, copy, capsys):
        cohort = copy / "cohorts" / "cnn"
        cohort.mkdir(parents=True)
        (cohort / "ledger.jsonl").write_text((copy / "ledger.jsonl").read_text()[:-20])
        assert main(["report", str(copy)]) == 5
        assert "the ledger of cnn does not verify" in capsys.readouterr().err
        assert "average cnn does NOT verify" in Page((copy / "report.html").read_text()).words


class TestSelfContained:
    def test_nothing_is_loaded_and_the_browser_is_forbidden_to_try(self, private_page):
        page = Page(private_page)
        for tag, attributes in page.tags:
            for name in ("src", "href", "action", "data", "srcset"):
                value = attributes.get(name) or ""
                assert not value or value.startswith(("data:", "#")), f"<{tag} {name}={value[:60]}>"
        (policy,) = [
            attributes["content"]
            for _, attributes in page.tags
            if attributes.get("http-equiv") == "Content-Security-Policy"
        ]
        assert "default-src 'none'" in policy
        assert "http" not in policy

    def test_the_licence_of_the_plots_is_kept(self, private_page):
        assert "Redistribution and use in source and binary forms" in private_page

    def test_it_stays_small(self, private_page):
        assert len(private_page.encode()) < LARGEST

    def test_a_page_that_would_be_too_large_is_refused_and_not_written(self, tmp_path):
        with pytest.raises(ConfigError, match="at most 5 MB"):
            write_page("x" * (LARGEST + 1), tmp_path / "page.html")
        assert not list(tmp_path.iterdir())

    def test_pictures_have_words_and_plots_have_tables(self, private_page):
        page = Page(private_page)
        pictures = [attributes for tag, attributes in page.tags if tag == "img"]
        assert pictures
        assert all(one.get("alt") for one in pictures)
        drawn = [one for tag, one in page.tags if tag == "div" and one.get("class") == "canvas"]
        assert len(drawn) == page.words.count("The figures as a table") == 4
        assert all(one["role"] == "img" and one["aria-label"] for one in drawn)


class TestHostileContent:
    def test_a_class_name_cannot_become_markup(self, copy):
        summary = json.loads((copy / "summary.json").read_text())
        evil = "</script><script>alert(1)</script>"
        summary["evaluation_only"].setdefault("dice_by_class", {})[evil] = summary["evaluation_only"]["dice"]
        summary["model"] = "<img src=x onerror=alert(1)>"
        (copy / "summary.json").write_text(json.dumps(summary))
        page = run_page(read_run(copy))
        assert evil not in page
        assert "<img src=x" not in page
        assert "&lt;img src=x" in page

    def test_a_site_name_cannot_leave_the_script_of_a_plot(self, copy):
        evil = "</script><script>alert(1)</script>"
        rows = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
        for row in rows:
            if row["evaluation_only"]:
                per_site = row["evaluation_only"]["dice"]["per_site"]
                per_site[evil] = per_site["clinic-1"]
        (copy / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        summary = json.loads((copy / "summary.json").read_text())
        summary["sites"].append(evil)
        (copy / "summary.json").write_text(json.dumps(summary))
        assert evil not in run_page(read_run(copy))

    @pytest.mark.parametrize(
        "content", [b"GIF89a", b"\x89PNG\r\n\x1a\n" + b"x" * (1 << 20)], ids=["no PNG", "too large"]
    )
    def test_a_file_that_is_no_preview_is_refused(self, copy, content):
        (copy / "previews" / "clinic-1-0.png").write_bytes(content)
        with pytest.raises(DataError, match=re.escape("clinic-1-0.png: expected a PNG")):
            read_run(copy)

    @pytest.mark.parametrize("text", ["", "[]", '{"format_version": 1}', '{"format_version": 9}', "{"])
    def test_an_audit_file_that_is_none_is_refused_by_name(self, private_run, tmp_path, text):
        (tmp_path / "audit.json").write_text(text)
        with pytest.raises(DataError, match=re.escape("audit.json")):
            read_run(private_run, audits=[tmp_path / "audit.json"])


class TestImages:
    def test_real_images_are_shown_only_when_asked_for(self, copy):
        config = (copy / "config.toml").read_text()
        (copy / "config.toml").write_text(config.replace('source = "phantom"', 'source = "hospital"'))
        assert not read_run(copy).pictures
        assert read_run(copy, include_images=True).pictures


class TestCommand:
    def test_json_says_the_same(self, private_run, capsys):
        assert main(["report", str(private_run), "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["format_version"] == 1
        assert document["ledger"]["status"] == "closed"
        assert [line["topic"] for line in document["verdict"]][:2] == ["result", "ledger"]
        assert not (private_run / "report.html").exists()

    def test_a_folder_that_is_no_run_is_refused(self, tmp_path, capsys):
        assert main(["report", str(tmp_path)]) == 2
        assert "expected a run directory" in capsys.readouterr().err
