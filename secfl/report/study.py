"""The page of a study: its conclusions, its tables beside the published figures, its pictures, its runs."""

from __future__ import annotations

from secfl.report.page import render
from secfl.report.plots import dots
from secfl.report.study_files import StudyFacts

__all__ = ["study_page"]


def study_page(facts: StudyFacts) -> str:
    """The page, self-contained."""
    plots = [
        dots(f"panel-{number}", title=panel.title, text=panel.text, x=panel.x, series=panel.series)
        for number, panel in enumerate(facts.panels)
    ]
    return render("study.html.j2", title=f"{facts.title}: secfl study", plots=plots, facts=facts)
