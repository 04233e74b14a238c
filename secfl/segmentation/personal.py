"""Parameters that never leave their site: the rest is a shared model, and only that is exchanged.

Normalisation layers that stay at home make room for each scanner's intensities (Li et al. 2021, "FedBN"; with group
or instance normalisation these are scale and shift), heads that stay at home for each clinic's own classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

from secfl.errors import ConfigError
from secfl.segmentation.task import State

__all__ = ["PersonalStates"]


class PersonalStates:
    """Every site's own parameters, and how models come apart and together.

    Args:
        names: Which parameters stay at the sites.
        initial: A whole model: its order of tensors, and where every site starts.
        by_site: Whole models of sites that start elsewhere, such as from a head for other classes.

    Raises:
        ConfigError: Nothing would be left to exchange, or what is left is not the same everywhere.
    """

    def __init__(
        self, names: AbstractSet[str], initial: State, *, by_site: Mapping[str, State] | None = None
    ) -> None:
        self._names = names
        self._order = tuple(initial)
        self._initial = {name: initial[name] for name in initial if name in names}
        self._by_site = {site: self._own(site, whole, initial) for site, whole in (by_site or {}).items()}
        self._now: dict[str, State] = {}
        self._before: dict[str, tuple[int, State]] = {}
        if set(initial) == set(names):
            raise ConfigError("training.local_parameters: nothing of this model would be left to exchange")

    def _own(self, site: str, whole: State, initial: State) -> State:
        shapes = {name: tensor.shape for name, tensor in self.shared(whole).items()}
        if tuple(whole) != self._order or any(initial[name].shape != shape for name, shape in shapes.items()):
            raise ConfigError(
                f"site {site}: what its model shares has another shape than elsewhere; expected classes to change "
                "nothing but the head (training.local_parameters)"
            )
        return {name: tensor for name, tensor in whole.items() if name in self._names}

    def shared(self, whole: State) -> State:
        """The part of a model that is exchanged."""
        return {name: tensor for name, tensor in whole.items() if name not in self._names}

    def of(self, site: str) -> State:
        """A site's own part, as it is now."""
        return self._now.get(site, self._by_site.get(site, self._initial))

    def load(self, site: str, state: State) -> None:
        """Take a site's own part back.

        Raises:
            ConfigError: They are those of another model.
        """
        if set(state) != set(self._initial):
            raise ConfigError(f"site {site}: its own parameters are those of another model")
        self._now[site] = {name: state[name] for name in self._initial}
        self._before.pop(site, None)

    def whole(self, state: State, site: str | None) -> State:
        """A whole model: ``state`` as it is, or completed by the site's own part (for nobody: the first one).

        Raises:
            ConfigError: Other tensors than this model's.
        """
        if not self._names or len(state) == len(self._order):
            return state
        own = self._initial if site is None else self.of(site)
        both = {**state, **own}
        if set(both) != set(self._order):
            raise ConfigError("model state: other tensors than this model's")
        return {name: both[name] for name in self._order}

    def at_start(self, site: str, state: State, *, round_index: int) -> State:
        """The whole model with which a site enters a round, however often it does so."""
        if self._before.get(site, (-1, {}))[0] != round_index:
            self._before[site] = (round_index, self.of(site))
        self._now[site] = self._before[site][1]
        return self.whole(state, site)

    def keep(self, site: str, trained: State) -> State:
        """Keep the site's own part of what it trained, and give the rest."""
        self._now[site] = {name: tensor for name, tensor in trained.items() if name in self._names}
        return self.shared(trained)
