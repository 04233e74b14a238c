"""One self-contained HTML page: nothing is loaded from a network, and the page forbids its browser to try."""

from __future__ import annotations

import platform
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import tomli_w
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from secfl._version import __version__
from secfl.errors import ConfigError
from secfl.federation.checkpoint import write_atomically
from secfl.report.facts import RunFacts
from secfl.report.plots import Plot, embed, run_plots, script_library, themed
from secfl.report.sentences import adversary_rows, verdict_lines

__all__ = ["render", "run_page", "write_page"]

LARGEST = 5_000_000
"""Bytes that a page may have."""
_BACKTICKS = re.compile("`([^`]+)`")


def run_page(facts: RunFacts) -> str:
    """The report of one run.

    Args:
        facts: What its directory shows.

    Returns:
        The page, self-contained.
    """
    rows = adversary_rows(facts)
    assumptions = {
        assumption.name: assumption.statement for row in rows for assumption in row.statement.assumptions
    }
    settings = facts.config.model_dump(mode="json", exclude_none=True)
    return render(
        "run.html.j2",
        title=f"{facts.name}: secfl report",
        plots=run_plots(facts),
        facts=facts,
        summary=facts.summary,
        lines=verdict_lines(facts),
        rows=rows,
        assumptions=assumptions,
        unprotected=rows[0].statement.unprotected if rows else (),
        scores=_scores(facts.summary),
        dropouts=[(row["round"] + 1, row["dropped"]) for row in facts.metrics if row["dropped"]],
        settings=tomli_w.dumps(settings),
        digests=_digests(facts),
        commands=_commands(facts),
        environment=_environment(facts.summary),
    )


def render(template: str, *, title: str, plots: Sequence[Plot], **values: Any) -> str:
    """Fill a template that extends ``base.html.j2``.

    Args:
        template: Its name under ``templates``.
        title: Of the page.
        plots: Drawn where the template asks for them by key.
        values: What it uses; everything is escaped.
    """
    environment = Environment(
        loader=PackageLoader("secfl.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["coded"] = _coded
    script, places = embed(plots)
    # Bokeh's script and places are its own output, and the other files are ours.
    return environment.get_template(template).render(
        title=title,
        plots={plot.key: plot for plot in plots},
        places={key: Markup(place) for key, place in places.items()},  # noqa: S704 - escaped by Bokeh
        library=Markup(script_library() if plots else ""),  # noqa: S704 - Bokeh's own script
        drawing=Markup(script),  # noqa: S704 - escaped by Bokeh
        themed=Markup(themed(plots)),  # noqa: S704 - JSON of our own words
        style=Markup(_own("style.css")),  # noqa: S704 - our own file
        behaviour=Markup(_own("page.js")),  # noqa: S704 - our own file
        **values,
    )


def write_page(text: str, out: Path) -> None:
    """Write a page, whole or not at all.

    Raises:
        ConfigError: It cannot be written, or would be larger than 5 MB.
    """
    content = text.encode()
    if len(content) > LARGEST:
        raise ConfigError(
            f"{out}: the page would have {len(content) / 1e6:.1f} MB; expected at most {LARGEST / 1e6:g} MB "
            "(leave out --include-images)"
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, content)
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written ({error.strerror})") from None


def _coded(text: str) -> Markup:
    """What stands between backticks as code; everything is escaped before."""
    return Markup(_BACKTICKS.sub(r"<code>\1</code>", str(escape(text))))  # noqa: S704 - escaped in this line


def _own(name: str) -> str:
    return resources.files("secfl.report").joinpath("templates", name).read_text(encoding="utf-8")


def _scores(summary: Mapping[str, Any] | None) -> list[tuple[str, Mapping[str, Any]]]:
    """Name and Dice row of every model: the federated one, single sites' and the pooled one, and its classes."""
    evaluation = (summary or {}).get("evaluation_only") or {}
    if "dice" not in evaluation:
        return []
    clients = evaluation.get("clients", {})
    families = (summary or {}).get("families", {})
    rows = [("global student" if clients else "federated model", evaluation["dice"])]
    rows += [(f"class {name}", row) for name, row in evaluation.get("dice_by_class", {}).items()]
    rows += [
        (f"{site}'s model{_family(families.get(site))} in the federation", row)
        for site, row in sorted(clients.items())
    ]
    if "references" in evaluation:
        rows += [
            (f"{site}{_family(families.get(site))} alone", row)
            for site, row in sorted(evaluation["references"]["local"].items())
        ]
        rows.append(("pooled data (no privacy)", evaluation["references"]["pooled"]))
    return rows


def _family(name: str | None) -> str:
    return f" ({name})" if name else ""


def _environment(summary: Mapping[str, Any] | None) -> dict[str, str]:
    """What the run was made with, as far as it wrote that down, and what this page was made with."""
    found = {}
    if summary is not None:
        found["the run"] = (
            f"secfl {summary['secfl_version']}, engine {summary.get('engine', 'inprocess')}, "
            f"seed {summary['seed']}, {summary['stopped_because']}"
        )
        if (made := summary.get("environment")) is not None:
            libraries = ", ".join(f"{name} {version}" for name, version in made["libraries"].items())
            found["made with"] = (
                f"Python {made['python']} on {made['system']}, {made['cores']} cores; {libraries}"
            )
    found["this page"] = f"secfl {__version__}, Python {platform.python_version()} on {platform.platform()}"
    return found


def _digests(facts: RunFacts) -> dict[str, str]:
    found = {"configuration": facts.config.digest().hex()}
    if facts.summary is not None:
        found["final model"] = str(facts.summary["final_model_sha256"])
    if facts.verdict is not None:
        found["ledger (Merkle root)"] = facts.verdict.root
    return found


def _commands(facts: RunFacts) -> list[tuple[str, str]]:
    run = shlex.quote(facts.name)
    again = (
        "the same model, bit for bit"
        if facts.config.privacy.mode.value == "off"
        else "fresh noise, so another model"
    )
    return [
        ("check the ledger", f"secfl ledger verify {run}"),
        ("each adversary in words", f"secfl ledger explain {run}"),
        (f"run it again ({again})", f"secfl simulate --config {run}/config.toml"),
        ("look for leaks in what was recorded", f"secfl audit transcript {run}"),
        ("this page", f"secfl report {run}"),
    ]


def facts_as_json(facts: RunFacts) -> dict[str, Any]:
    """What the page says, for machines."""
    return {
        "format_version": 1,
        "name": facts.name,
        "verdict": [asdict(line) for line in verdict_lines(facts)],
        "ledger": None if facts.verdict is None else facts.verdict.to_json(),
        "broken": facts.broken,
        "cohorts": [
            {
                "name": cohort.name,
                "broken": cohort.broken,
                "ledger": None if cohort.verdict is None else cohort.verdict.to_json(),
            }
            for cohort in facts.cohorts
        ],
        "summary": facts.summary,
        "epsilon": None if facts.history is None else asdict(facts.history),
        "audits": [asdict(audit) for audit in facts.audits],
    }
