"""What a federation of unlike models has come to: every model on every site, and beside them the references."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from secfl.config import RunConfig
from secfl.federation.evaluation import by_site
from secfl.segmentation.task import SiteMetrics, State

if TYPE_CHECKING:
    from secfl.segmentation.family_task import FamilyTask

__all__ = ["FamilyResults"]


class FamilyResults:
    """Metrics of the student, of every client's model, and of models trained without a federation.

    Args:
        config: The run.
        tasks: By family.
        family_of: Client -> its family.
    """

    def __init__(
        self, config: RunConfig, tasks: Mapping[str, FamilyTask], family_of: Mapping[str, str]
    ) -> None:
        self._config = config
        self._tasks = tasks
        self._family_of = family_of

    def metrics(self, state: State, family: str | None = None) -> dict[str, SiteMetrics]:
        """A model on the test images of every site; without a family it is the student."""
        task = self._tasks[family or self._config.multi_model.student].task
        return {site: task.evaluate(site, state) for site in task.sites}

    def compared(
        self,
        student: Mapping[str, SiteMetrics],
        models: Mapping[str, State],
        *,
        trained: Callable[[str, Callable[[], State]], State],
    ) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """What is known of all models after the last round.

        Args:
            student: The student's metrics.
            models: Client -> its model.
            trained: Gives a reference by name, made by the function or kept from before an interruption.

        Returns:
            Dice of the clients' models by site, with Dice over the union of all test cases; and the references in
            the form of `secfl.federation.evaluation.references`, if the configuration asks for them.
        """
        clients = {site: self.metrics(model, self._family_of[site]) for site, model in models.items()}
        union: dict[str, Any] = {
            "student": _over_all_cases(student),
            "clients": {site: _over_all_cases(found) for site, found in clients.items()},
        }
        references = None
        if self._config.references:
            local = {
                site: self.metrics(trained(site, self._alone(site)), self._family_of[site]) for site in models
            }
            pooled = self.metrics(trained("pooled", self._pooled(list(models))))
            references = {
                "local": {site: by_site(found, "dice") for site, found in local.items()},
                "pooled": by_site(pooled, "dice"),
            }
            union["local"] = {site: _over_all_cases(found) for site, found in local.items()}
            union["pooled"] = _over_all_cases(pooled)
        return {
            "clients": {site: by_site(found, "dice") for site, found in clients.items()},
            "union": union,
        }, references

    def _alone(self, site: str) -> Callable[[], State]:
        """What a site would have without a federation: its family on its own images."""
        return self._reference(self._family_of[site], [site])

    def _pooled(self, sites: Sequence[str]) -> Callable[[], State]:
        return self._reference(self._config.multi_model.student, sites)

    def _reference(self, family: str, sites: Sequence[str]) -> Callable[[], State]:
        rounds = self._config.training.rounds
        return lambda: self._tasks[family].task.train_reference(sites, rounds=rounds)


def _over_all_cases(metrics: Mapping[str, SiteMetrics]) -> float:
    """Mean Dice over the test cases of all sites together."""
    cases = sum(row.cases for row in metrics.values())
    return round(sum(row.dice * row.cases for row in metrics.values()) / cases, 6)
