"""Sites whose images belong to nobody in the federation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from secfl.errors import ConfigError
from secfl.segmentation.data.cases import Case, Dataset
from secfl.types import client_id

__all__ = ["rename_last", "split_public"]


def split_public(dataset: Dataset, names: Sequence[str]) -> tuple[Dataset, tuple[Case, ...]]:
    """The clients' sites, and all cases of the public ones in the order of their names.

    Raises:
        ConfigError: A name is no site, or no site is left.
    """
    for name in names:
        if name not in dataset.sites:
            raise ConfigError(f"data.public: no site {name}; expected some of {', '.join(dataset.sites)}")
    sites = {name: site for name, site in dataset.sites.items() if name not in names}
    if not sites:
        raise ConfigError("data.public: names every site; expected some that take part")
    cases = [
        case for name in sorted(names) for case in (*dataset.sites[name].train, *dataset.sites[name].test)
    ]
    return replace(dataset, sites=sites), tuple(cases)


def rename_last(dataset: Dataset, names: Sequence[str]) -> Dataset:
    """Give the last sites other names.

    Raises:
        ConfigError: A name cannot be a site's, or is taken.
    """
    if not names:
        return dataset
    found = list(dataset.sites)
    kept, last = found[: -len(names)], found[-len(names) :]
    sites = {name: dataset.sites[name] for name in kept}
    for old, name in zip(last, names, strict=True):
        if name in sites:
            raise ConfigError(f"data.public: {name} is another site's name; expected a new one")
        sites[client_id(name)] = replace(dataset.sites[old], name=client_id(name))
    return replace(dataset, sites=sites)
