"""From a configuration to every site's cases: a data folder, a phantom, or data of its own for each site."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from secfl.config import DataConfig, DpMode, RunConfig
from secfl.errors import ConfigError, DataError
from secfl.randomness import ExperimentSeed
from secfl.segmentation.data.cases import Case, Dataset, SiteData, Truth
from secfl.segmentation.data.public import rename_last
from secfl.segmentation.data.splits import SplitRule

if TYPE_CHECKING:
    from secfl.segmentation.data.folder import Masks, Reading

__all__ = ["load_dataset", "reading_of"]

_PHANTOM_SITES = 3


def load_dataset(config: RunConfig, *, truth: Truth = Truth.HERE) -> Dataset:
    """Read or generate the data that the configuration names.

    Masks are left unread where nothing is learned from labels: of all sites under ``masked-images``, and of public
    ones that are the proxy set of several families.

    Args:
        config: The run.
        truth: Whether this process may look at masks at all.

    Raises:
        ConfigError: Another number of clients than sites.
        DataError: An input file that cannot be used, or sites whose images do not go through one model.
    """
    data, seed = config.data, ExperimentSeed(config.seed)
    if data.sites:
        dataset = _own_data(config, seed, truth)
    elif data.is_phantom:
        clients = config.clients or _PHANTOM_SITES
        return rename_last(_phantom(data, seed, sites=clients + len(data.public)), data.public)
    else:
        from secfl.segmentation.data.folder import read_folder

        dataset = _as_asked(
            read_folder(
                Path(data.source),
                test_fraction=data.test_fraction,
                seed=seed,
                reading=reading_of(data, config.privacy.mode),
                masks=lambda site: _masks(config, site, truth),
            ),
            data,
        )
    sites = len(dataset.sites) - len(data.public)
    if config.clients is not None and config.clients != sites:
        where = "data.sites" if data.sites else data.source
        raise ConfigError(
            f"--clients {config.clients}: {where} has {sites} sites; leave --clients out or make them equal"
        )
    return dataset


def reading_of(data: DataConfig, mode: DpMode = DpMode.OFF) -> Reading:
    """How the configuration wants files to become cases; for a phantom, files that `secfl data phantom` wrote.

    Args:
        data: Its section.
        mode: Whose presence noise hides. Where that is a patient's, splits are drawn for each patient alone.
    """
    from secfl.segmentation.data.folder import Reading
    from secfl.segmentation.data.labels import LabelMap
    from secfl.segmentation.data.preparation import Recipe

    if data.is_phantom:
        from secfl.segmentation.data.phantom_tasks import phantom_task

        task = phantom_task(data.phantom_task, data.phantom_target)
        return Reading(recipe=replace(task.recipe, channels=data.channels), labels=task.labels)
    return Reading(
        recipe=Recipe(
            normalization=data.normalization,
            windows=data.windows,
            spacing=data.spacing,
            channels=data.channels,
        ),
        labels=LabelMap.of(data.labels),
        cache=None if data.cache is None else Path(data.cache),
        split=SplitRule.EACH if mode is DpMode.PATIENT else SplitRule.SHARE,
    )


def _phantom(data: DataConfig, seed: ExperimentSeed, *, sites: int) -> Dataset:
    from secfl.segmentation.data.phantom_tasks import make_task_dataset, phantom_task

    made = make_task_dataset(
        phantom_task(data.phantom_task, data.phantom_target),
        sites=sites,
        images_per_site=data.phantom_images,
        size=data.image_size,
        test_fraction=data.test_fraction,
        seed=seed,
        target=data.phantom_target,
    )
    return _as_asked(made, data)


def _masks(config: RunConfig, site: str, truth: Truth) -> Masks:
    from secfl.segmentation.data.folder import Masks

    proxy = bool(config.multi_model.families) and site in config.data.public
    unlabelled = proxy or config.training.objective == "masked-images"
    return Masks.UNREAD if unlabelled or truth is Truth.ELSEWHERE else Masks.READ


def _own_data(config: RunConfig, seed: ExperimentSeed, truth: Truth) -> Dataset:
    """Every site's own data; a site's phantom does not depend on which other sites there are."""
    data = config.data
    found: dict[str, Dataset] = {}
    for name in sorted(data.sites):
        own = data.of_site(name)
        if own.is_phantom:
            made = _phantom(own, ExperimentSeed(seed.derive(f"site/{name}")), sites=1)
        else:
            from secfl.segmentation.data.folder import read_site

            made = read_site(
                Path(own.source),
                name=name,
                test_fraction=own.test_fraction,
                seed=seed,
                reading=reading_of(own, config.privacy.mode),
                masks=_masks(config, name, truth),
            )
            made = _as_asked(made, own)
        (site,) = made.sites.values()
        found[name] = replace(made, sites={name: replace(site, name=name)})
    first_name, first = next(iter(found.items()))
    for name, one in found.items():
        if one.spatial_dims != first.spatial_dims:
            raise DataError(
                f"data.sites.{name}: images of {one.spatial_dims} dimensions, but {first_name} has "
                f"{first.spatial_dims}; expected the same at every site (data.slices makes pictures of volumes)"
            )
        if one.channels != first.channels:
            raise DataError(
                f"data.sites.{name}: images of {one.channels} channels, but {first_name} has {first.channels}; "
                "expected the same at every site (data.channels makes them equal)"
            )
    return replace(
        first,
        sites={name: one.sites[name] for name, one in found.items()},
        is_phantom=all(one.is_phantom for one in found.values()),
        names_by_site={name: one.class_names for name, one in found.items()},
    )


def _as_asked(dataset: Dataset, data: DataConfig) -> Dataset:
    """Volumes as slices, and with the number of channels that is asked for."""
    count = data.slices
    if count is not None and dataset.spatial_dims == 3:
        dataset = replace(
            dataset,
            spatial_dims=2,
            sites={
                name: SiteData(
                    name=site.name,
                    train=tuple(part for case in site.train for part in _slices(case, count)),
                    test=tuple(part for case in site.test for part in _slices(case, count)),
                )
                for name, site in dataset.sites.items()
            },
        )
    if data.channels is None or dataset.channels == data.channels:
        return dataset
    wanted = data.channels
    return replace(
        dataset,
        channels=wanted,
        sites={
            name: replace(
                site,
                train=tuple(_with_channels(case, wanted) for case in site.train),
                test=tuple(_with_channels(case, wanted) for case in site.test),
            )
            for name, site in dataset.sites.items()
        },
    )


def _with_channels(case: Case, count: int) -> Case:
    from secfl.segmentation.data.preparation import with_channels

    return replace(case, image=with_channels(case.image, count, name=case.name))


def _slices(volume: Case, count: int) -> list[Case]:
    """Axial slices at equal distances, none at the ends, as pictures of the same patient."""
    from secfl.segmentation.data.preparation import axial_slice

    depth = volume.image.shape[-1]
    chosen = sorted(
        {round(place) for place in np.linspace(0, depth - 1, min(count, depth) + 2)[1:-1].tolist()}
    )
    spacing = volume.spacing
    return [
        Case(
            name=f"{volume.name}-{index:04d}",
            patient=volume.patient,
            image=axial_slice(volume.image, index),
            labels=np.ascontiguousarray(volume.labels[..., index].T),
            valid=None if volume.valid is None else np.ascontiguousarray(volume.valid[..., index].T),
            spacing=None if spacing is None else (spacing[1], spacing[0]),
        )
        for index in chosen
    ]
