"""Members of a population: a recipe with the settings and the seed of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.population.stacked_agents import MEMBER_SETTINGS
from pipeline.config import Config
from pipeline.train_options import parse_train, split_words
from pipeline.tune.search import parse_value
from saltus.device import resolve_device
from saltus.errors import SaltusError

_OF_ONE_RUN = {"--seed": "--seeds", "--minutes": "-- --total-env-steps", "--run-dir": "--output"}


@dataclass(frozen=True)
class Member:
    """A run among many.

    Attributes:
        variant: settings that differ from those of the recipe, as NAME=VALUE.
        config: all settings, with the member's seed.
    """

    variant: str
    config: Config


def make_members(task: str, options: Sequence[str], variants: Sequence[str], seeds: Sequence[int]) -> list[Member]:
    """The members of every variant and seed, variant by variant.

    Args:
        task: as for ``saltus train``.
        options: options of ``saltus train``, for all members.
        variants: settings of `MEMBER_SETTINGS` as NAME=VALUE, separated by spaces; none for the recipe itself.
        seeds: seeds of each variant.

    Raises:
        SaltusError: no seed, a repeated variant, settings that cannot differ between members, or an invalid value.
    """
    for option in split_words([*options]):
        if (name := option.replace("_", "-")) in _OF_ONE_RUN:
            raise SaltusError(f"{name} is an option of a single run: give {_OF_ONE_RUN[name]} instead")
    if not seeds or not variants:
        raise SaltusError("there are no members: give at least one seed and one variant ('' is the recipe itself)")
    recipe, _ = parse_train([task, *options])
    recipe = recipe.for_device(resolve_device(recipe.device))  # also for evaluations and runs on the CPU
    if recipe.policy != "gaussian":
        raise SaltusError(f"populations have continuous policies, and this recipe has --policy {recipe.policy}")
    settings = {" ".join(text.split()): _parse(text, recipe) for text in variants}
    if len(settings) < len(variants):
        raise SaltusError("a variant is given twice: give each once; --seeds says how often each is trained")
    if len({replace(recipe, **values).learns_temperature for values in settings.values()}) > 1:
        raise SaltusError("alpha_lr is 0 in some variants: all members learn the temperature, or none does")
    return [
        Member(variant, replace(recipe, seed=seed, **values)) for variant, values in settings.items() for seed in seeds
    ]


def _parse(variant: str, recipe: Config) -> dict[str, Any]:
    """The settings of a variant, checked."""
    settings = {}
    for word in variant.split():
        name, equals, text = word.partition("=")
        if not equals or name not in MEMBER_SETTINGS:
            raise SaltusError(
                f"{word!r} cannot differ between members: a variant is a list of NAME=VALUE with names among "
                f"{', '.join(MEMBER_SETTINGS)}. Give other settings to all members, as options after --"
            )
        settings[name] = parse_value(name, text)
    unused = replace(recipe, **settings).unused_settings()
    for name in settings.keys() & unused.keys():
        raise SaltusError(f"{name} has no effect here: it needs {unused[name]}")
    return settings
