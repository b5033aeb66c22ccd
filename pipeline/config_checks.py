"""Checks of a configuration: which values and combinations of settings work."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from envs.task_options import coerce
from saltus.errors import SaltusError, warn_once

if TYPE_CHECKING:
    from pipeline.config import Config

# Larger values are mistakes: they need more memory or time than any machine has, or overflow float32.
MAXIMA: dict[str, float] = {
    **dict.fromkeys(("total_env_steps", "learning_starts", "buffer_size"), 10**15),
    **dict.fromkeys(("num_envs", "batch_size"), 10**7),
    **dict.fromkeys(("steps_per_round", "policy_delay", "solver_iterations", "max_contacts", "max_constraints"), 10**6),
    **dict.fromkeys(("eval_episodes", "num_atoms", "action_levels"), 10**5),
    **dict.fromkeys(("n_step", "noise_repeat", "num_threads", "utd_ratio"), 10**4),
    "num_critics": 10**3,
    "minutes": 10**7,
    **dict.fromkeys(("actor_lr", "critic_lr", "alpha_lr", "alpha_init", "value_range"), 1e30),
    "seed": 2**63 - 1,
}
_KINDS = {
    str: "a string",
    bool: "true or false",
    dict: "a dictionary",
    tuple: "a list of numbers",
    int: "a whole number",
    float: "a number",
    NoneType: "None",
}
_MAX_WIDTH, _MAX_LAYERS, _MAX_UPDATES_PER_ROUND = 10**5, 100, 10**6


def check(config: Config) -> None:
    """Check every setting, and the combinations.

    Raises:
        SaltusError: a value or combination that does not work; the message says what is accepted.
    """
    _check_choices(config)
    _check_numbers(config)
    _check_buffer(config)
    _check_round(config)
    _check_policy_delay(config)
    if config.value_network:
        _check_value_network(config)
    _check_recipe(config)


def refuse_unused(config: Config, default: Config) -> None:
    """Raise SaltusError if a setting that has no effect with the others differs from its default."""
    for name, needed in config.unused_settings().items():
        if getattr(config, name) != getattr(default, name):
            raise SaltusError(f"--{name.replace('_', '-')} has no effect here: it needs {needed}")


def coerce_setting(name: str, hint: Any, value: Any) -> Any:
    """A setting's value as its type hint has it: a list becomes a tuple, a whole number a float.

    Raises:
        SaltusError: a value of another type.
    """
    try:
        return coerce(hint, value)
    except (TypeError, ValueError):
        _refuse(name, value, describe_values(hint))


def describe_values(hint: Any) -> str:
    """The values of a setting with a type hint, in words."""
    kind = get_origin(hint) or hint
    if kind in (Union, UnionType):
        return " or ".join(map(describe_values, get_args(hint)))
    choices = get_args(hint)
    if kind is Literal:
        return f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    return _KINDS[kind]


def _check_choices(config: Config) -> None:
    for name, hint in get_type_hints(type(config)).items():
        value, kind = getattr(config, name), get_origin(hint) or hint
        if kind is Literal and value not in get_args(hint):
            _refuse(name, value, describe_values(hint))
        if kind in (str, bool, dict, tuple) and not isinstance(value, kind):
            _refuse(name, value, describe_values(hint))


def _check_numbers(config: Config) -> None:
    at_least_1 = (
        "num_envs", "total_env_steps", "learning_starts", "steps_per_round", "batch_size",
        "num_atoms", "num_critics", "policy_delay",
        "log_every", "eval_every", "eval_episodes", "checkpoint_every",
    )  # fmt: skip
    positive = ("utd_ratio", "actor_lr", "critic_lr", "value_range")
    rules: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
        (at_least_1, lambda x: type(x) is int and x >= 1, "a whole number, at least 1"),
        (("n_step", "noise_repeat", "buffer_size"), _is_auto_or_at_least_1, "a whole number, at least 1, or auto"),
        (("action_levels",), _is_count_of_levels, "a whole number, at least 2, or 0, or auto"),
        (("seed", "target_subset"), lambda x: type(x) is int and x >= 0, "a whole number, 0 or more"),
        (positive, lambda x: math.isfinite(x) and x > 0, "a finite number above 0"),
        (("alpha_lr",), lambda x: math.isfinite(x) and x >= 0, "a finite number, 0 or more"),
        (("alpha_init",), _is_auto_or_positive, "a finite number above 0, or auto"),
        (("dropout", "adam_beta1"), lambda x: 0 <= x < 1, "in [0, 1)"),
        (("gamma",), _is_auto_or_discount, "in [0, 1), or auto"),
        (("tau", "lr_final_fraction"), lambda x: 0 < x <= 1, "in (0, 1]"),
        (("eval_policy_averaging",), lambda x: 0 <= x <= 1, "in [0, 1]"),
        (("minutes",), lambda x: x is None or (math.isfinite(x) and x > 0), "a finite number above 0, or None"),
        (("target_entropy_scale",), math.isfinite, "a finite number"),
        (("target_entropy",), lambda x: x == "auto" or math.isfinite(x), "a finite number, or auto"),
        (("actor_hidden", "critic_hidden"), lambda x: min(x, default=0) >= 1, "widths, each at least 1"),
        (
            ("actor_hidden", "critic_hidden"),
            lambda x: all(type(width) is int and width <= _MAX_WIDTH for width in x) and len(x) <= _MAX_LAYERS,
            f"at most {_MAX_LAYERS} widths, each a whole number and at most {_MAX_WIDTH:,}",
        ),
        (("target_entropy", "target_entropy_scale"), lambda x: x == "auto" or abs(x) <= 1e30, "at most 1e30"),
    )
    for names, holds, accepted in rules:
        for name in names:
            if not _holds(holds, value := getattr(config, name)):
                _refuse(name, value, accepted)

    for name, maximum in MAXIMA.items():
        if (value := getattr(config, name)) not in (None, "auto") and value > maximum:
            _refuse(name, value, f"at most {maximum:,g}" if maximum > 10**9 else f"at most {maximum:,}")


def _check_buffer(config: Config) -> None:
    if config.capacity < config.num_envs:
        raise SaltusError(
            f"the replay buffer holds {config.capacity} transitions and {config.num_envs} worlds add more per step: "
            f"raise buffer_size{'' if config.minutes else ' and total_env_steps'}, or lower num_envs"
        )
    if config.minutes is None and config.rounds < 1:
        raise SaltusError(
            f"learning_starts is {config.learning_starts} and total_env_steps is {config.total_env_steps}: the run "
            "would end before its first update. Raise total_env_steps, or lower learning_starts, num_envs or "
            "steps_per_round"
        )
    stored = min(config.learning_starts, config.capacity)
    if stored < config.batch_size:
        raise SaltusError(
            f"the first update samples batch_size = {config.batch_size} transitions, but only {stored} are stored by "
            f"then: raise learning_starts ({config.learning_starts}) and buffer_size ({config.max_transitions}), or "
            "lower batch_size"
        )


def _check_round(config: Config) -> None:
    steps = config.num_envs * config.steps_per_round
    updates = config.utd_ratio * steps
    if abs(updates - round(updates)) > 1e-6 * max(1.0, updates) or round(updates) < 1:
        near = sorted({max(1, math.floor(updates)), max(1, math.ceil(updates))})
        ratios = " or ".join(f"{count / steps:.12g}" for count in near)
        raise SaltusError(
            f"utd_ratio {config.utd_ratio:.12g} gives {updates:g} updates per round of {config.steps_per_round} vector "
            f"steps of {config.num_envs} worlds; it must be a whole number, at least 1. The nearest valid ratios are "
            f"{ratios}; or change num_envs or steps_per_round"
        )
    if updates > _MAX_UPDATES_PER_ROUND:
        raise SaltusError(
            f"utd_ratio {config.utd_ratio:.12g} gives {updates:,.0f} updates per round of {config.steps_per_round} "
            f"vector steps of {config.num_envs} worlds; it must be at most {_MAX_UPDATES_PER_ROUND:,}"
        )


def _check_policy_delay(config: Config) -> None:
    updates = config.rounds * config.updates_per_round
    if config.minutes is None and updates < config.policy_delay:
        raise SaltusError(
            f"policy_delay is {config.policy_delay:,} and the run has {updates:,} updates: actor and temperature would "
            "never learn. Lower policy_delay, or raise total_env_steps or utd_ratio"
        )


def _check_value_network(config: Config) -> None:
    """Refuse settings that belong to targets made by critics, to discrete actions, or to a learned temperature."""
    for holds, reason in (
        (
            config.policy == "gaussian",
            f"--policy {config.policy} computes the value of a state from its critics: set --no-value-network",
        ),
        (
            not config.target_network,
            "--value-network makes the critics' targets, from a copy of its own: set --no-target-network",
        ),
        (
            config.critic_loss == "mse",
            "--value-network learns the mean of returns, and categorical critics their distribution: set "
            "--critic-loss mse",
        ),
        (
            config.critic_norm != "batch",
            "--critic-norm batch normalises (s, a) and (s', a') jointly (as in CrossQ), and critics with "
            "--value-network see no (s', a'): set --critic-norm none or layer",
        ),
        (
            config.target_subset in (0, config.num_critics),
            f"--target-subset {config.target_subset} draws critics for a target (as in REDQ), and --value-network "
            "makes the target: set --target-subset 0",
        ),
        (
            config.actor_value == "min",
            "--value-network learns the minimum over the critics, which the actor then maximises too: set "
            "--actor-value min",
        ),
        (
            not config.learns_temperature,
            f"--alpha-lr is {config.alpha_lr:g}, and --value-network keeps the temperature fixed (Haarnoja et al. "
            "2018a): set --alpha-lr 0; --preset sac learns the temperature",
        ),
    ):
        if not holds:
            raise SaltusError(reason)


def _check_recipe(config: Config) -> None:
    """Refuse combinations that do not work, and warn of those that rarely do; the message names some that do."""
    mse, batch_norm = config.critic_loss == "mse", config.critic_norm == "batch"
    residual = config.network == "residual"
    for holds, reason in (
        (
            config.num_critics >= config.target_subset,
            f"target_subset is {config.target_subset} and num_critics is only {config.num_critics}: raise num_critics "
            "or lower target_subset",
        ),
        (
            config.target_network or config.value_network or batch_norm,
            "without target networks critics are stable only with batch norm: set --target-network or "
            "--critic-norm batch",
        ),
        (
            not (mse and config.target_network and batch_norm),
            "batch-normalised critics with target networks need --critic-loss categorical (as in XQC); with "
            "--critic-loss mse, drop --target-network (CrossQ) or choose another --critic-norm",
        ),
        (
            config.clipped_double_q or (mse and config.target_network),
            "--target-subset and --actor-value mean need --critic-loss mse and --target-network",
        ),
        (
            config.policy == "gaussian"
            or (mse and config.target_network and config.clipped_double_q and config.dropout == 0 and not residual),
            f"--policy {config.policy} needs --critic-loss mse, --target-network, --network mlp, --dropout 0, "
            "--target-subset 0 and --actor-value min: start from --preset sac-discrete",
        ),
        (
            not config.without_actor or config.eval_policy_averaging == 0,
            "--discrete-update soft-q has no actor to average: set --eval-policy-averaging 0",
        ),
        (
            config.dropout == 0 or (mse and not batch_norm),
            "--dropout needs --critic-loss mse and --critic-norm layer or none",
        ),
        (
            config.actor_norm == "none" or not mse,
            "--actor-norm batch needs --critic-loss categorical (as in XQC and FlashSAC)",
        ),
        (
            not residual or (config.actor_norm == "batch" and batch_norm),
            "--network residual needs --actor-norm batch and --critic-norm batch",
        ),
        (
            not residual or len({*config.actor_hidden}) == len({*config.critic_hidden}) == 1,
            "--network residual needs blocks of equal width: give --actor-hidden and --critic-hidden equal numbers",
        ),
        (
            config.weight_normalization == "none" or batch_norm,
            "--weight-normalization needs --critic-norm batch: without it, critics cannot represent large values",
        ),
        (
            config.weight_normalization != "all" or not mse,
            "--weight-normalization all bounds the critics' outputs: it needs --critic-loss categorical",
        ),
        (
            "batch" not in (config.actor_norm, config.critic_norm) or config.batch_size >= 2,
            "batch norm needs a batch_size of at least 2",
        ),
        (
            mse or config.num_atoms >= 2,
            f"a categorical critic needs num_atoms of at least 2, not {config.num_atoms}",
        ),
    ):
        if not holds:
            raise SaltusError(reason)
    if not mse and config.reward_scaling == "none" and config.value_range <= type(config).value_range:
        warn_once(
            f"a categorical critic's values lie in [-{config.value_range:g}, {config.value_range:g}], and returns are "
            "usually larger: set --reward-scaling bounded, or set --value-range to the largest return"
        )


def _holds(rule: Callable[[Any], bool], value: object) -> bool:
    """Whether a rule for numbers accepts a value of any type."""
    try:
        return rule(value)
    except (TypeError, OverflowError):
        return False


def _is_auto_or_at_least_1(value: object) -> bool:
    return value == "auto" or (type(value) is int and value >= 1)


def _is_count_of_levels(value: object) -> bool:
    return value == "auto" or (type(value) is int and (value == 0 or value >= 2))


def _is_auto_or_discount(value: Any) -> bool:
    return value == "auto" or (isinstance(value, int | float) and 0 <= value < 1)


def _is_auto_or_positive(value: Any) -> bool:
    return value == "auto" or (isinstance(value, int | float) and math.isfinite(value) and value > 0)


def _refuse(name: str, value: object, accepted: str) -> NoReturn:
    raise SaltusError(f"{name} is {value!r}; it must be {accepted}")
