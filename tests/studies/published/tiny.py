"""The smallest study there can be: one real run of three phantom clinics and one job that is no run."""

from __future__ import annotations

from secfl.studies.jobs import Job, store_result
from secfl.studies.published.interface import Definition, Prose, Row
from secfl.studies.published.runs import run_job


def settings(seed, scheme):
    return {
        "seed": seed,
        "threads": 1,
        "clients": 3,
        "evaluate_every": 1,
        "data": {"phantom_images": 8, "image_size": 32},
        "model": {"channels": [4, 4, 4]},
        "training": {"rounds": 3, "local_epochs": 1},
        "secure_agg": {"scheme": scheme.value},
    }


def collect(run, summary):
    return {"metrics": (run / "metrics.jsonl").read_text().count("\n"), "model": summary["model"]}


def count(result, before):
    store_result(result, {"parameters": sum(1 for path in before if path.exists()), "seconds": 0.1})


class Tiny:
    name = "tiny"
    title = "A tiny study"
    source = "A. Nonymous, Journal of Small Things 1, 1"
    libraries = ("numpy",)

    def stages(self, request, runs):
        first = [
            run_job(f"run-{seed}", settings(seed, request.scheme), runs=runs, collect=collect)
            for seed in request.seeds
        ]
        result = runs / "count.json"
        second = Job(
            name="count",
            result=result,
            rounds=1,
            work=count,
            arguments=(result, tuple(job.result for job in first)),
            done_rounds=lambda: 0,
        )
        return [first, [second]]

    def expected_seconds(self, request, job):
        return 0.1 if job.name == "count" else 60.0

    def rows(self, request, results):
        dice = {seed: results[f"run-{seed}"]["evaluation"]["dice"]["mean"] for seed in request.seeds}
        up = {seed: results[f"run-{seed}"]["megabytes"]["up"] for seed in request.seeds}
        return [
            Row(
                name="Dice",
                where={"arm": "federated"},
                values=dice,
                definition=Definition.THEIRS,
                published=0.9,
                source="table 2",
                group="Overlap",
            ),
            Row(name="up", values=up, definition=Definition.OURS, unit="MB", decimals=1, group="Traffic"),
            Row(name="HD95", definition=Definition.OURS, unit="mm", note="not published", group="Overlap"),
        ]

    def figures(self, request, rows, results):
        def dice(figure):
            axis = figure.subplots()
            axis.bar(range(len(rows[0].values)), list(rows[0].values.values()))

        return {"dice-by-seed": dice}

    def prose(self, request, rows, results):
        return Prose(
            run=("Three clinics.",),
            known=("Nothing.",),
            ours=("Everything.",),
            conclusions=(f"Dice {rows[0].mean:.3f} against {rows[0].published}.",),
        )


STUDY = Tiny()
