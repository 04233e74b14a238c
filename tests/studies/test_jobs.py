"""Jobs: done ones are skipped, errors keep their type, results are whole."""

from __future__ import annotations

import os

import pytest

from secfl.errors import ConfigError, DataError
from secfl.studies.jobs import Job, read_result, run_jobs, store_result


class Heard:
    def __init__(self):
        self.length = None
        self.places = []
        self.names = []

    def began(self, rounds, runs):
        self.length = (rounds, runs)

    def moved(self, rounds):
        self.places.append(rounds)

    def finished(self, job):
        self.names.append(job.name)


def work(path, value):
    if value == "refuse":
        raise ConfigError("clip: expected a positive number")
    store_result(path, {"value": value, "threads": os.environ["OMP_NUM_THREADS"]})


def job(folder, name, value):
    path = folder / f"{name}.json"
    return Job(name=name, result=path, rounds=3, work=work, arguments=(path, value), done_rounds=lambda: 1)


def test_only_missing_results_are_worked_for_and_each_process_has_one_thread(tmp_path):
    store_result(tmp_path / "first.json", {"value": "kept"})
    heard = Heard()
    run_jobs([job(tmp_path, "first", "new"), job(tmp_path, "second", "new")], processes=2, listener=heard)
    assert read_result(tmp_path / "first.json") == {"value": "kept"}
    assert read_result(tmp_path / "second.json") == {"value": "new", "threads": "1"}
    assert (heard.length, heard.names) == ((6, 2), ["second"])
    assert heard.places[0] == 3
    assert heard.places[-1] == 6


def test_a_refusal_comes_back_as_it_was_raised_and_no_result_is_written(tmp_path):
    with pytest.raises(ConfigError, match=r"^clip: expected"):
        run_jobs([job(tmp_path, "bad", "refuse")], processes=1, listener=Heard())
    assert not (tmp_path / "bad.json").exists()


@pytest.mark.parametrize("content", ["", "{", "[1]", None])
def test_a_damaged_result_is_refused_by_name(tmp_path, content):
    path = tmp_path / "damaged.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"damaged\.json: expected a result"):
        read_result(path)
