"""A training run: its parts, its rows of numbers, its state."""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict

from envs import transition as transitions
from envs.environment import Environment
from envs.simulation import Simulation
from pipeline import best_policy, checkpoint, rank_state
from pipeline.agent import Agent
from pipeline.buffer import ReplayBuffer
from pipeline.config import Config
from pipeline.dimensions import Dimensions
from pipeline.evaluate import Evaluation, evaluate_until
from pipeline.exploration import RepeatedNoise
from pipeline.file_names import CHECKPOINTS, EVALUATIONS, METRICS
from pipeline.health.health import Health
from pipeline.learner import Learner
from pipeline.logger import Logger
from pipeline.rank_report import add_statistics, compare_ranks, describe_rates, mean_metrics
from pipeline.ranks import ALONE, Ranks
from pipeline.rows import episode_rows, evaluation_row, metrics_row
from pipeline.seeding import derive_seed
from pipeline.worlds import environment_maker
from saltus.device import resolve_device
from saltus.errors import SaltusError

_log = logging.getLogger("saltus")


class Run:
    """Environment, replay buffer, agent, learner and counters of a training run.

    The constructor writes nothing to `run_dir`. Of several ranks each has a run, with its share of worlds, of every
    batch and of the replay buffer; all of them call the same methods in the same order.

    Args:
        config: the run's configuration, whose numbers are those of all ranks together.
        run_dir: the run's directory.
        ranks: the processes that train together.

    Attributes:
        observation: current observations of this rank's worlds, (num_envs, obs_dim).
        metrics: the agent's latest metrics, scalars on `device`.
        env_steps: env steps done, summed over the worlds of all ranks.
        vector_steps: steps of all worlds together.
        best: mean return, env steps and state of the best evaluated policy; empty before the first evaluation without
            failures.
        evaluation_pending: an evaluation was stopped, and comes before the next step.
        ended: the last step reached the run's length.
        failed_saves: number of checkpoints that this session could not write.
        health: says when the training does not hold.

    Raises:
        SaltusError: an unknown task, or a setting that does not work on this machine.
        MemoryError: worlds or replay buffer do not fit.
    """

    def __init__(self, config: Config, run_dir: Path, ranks: Ranks = ALONE):
        self.config, self.run_dir, self.ranks = config, run_dir, ranks
        self.device = resolve_device(config.device)
        if config.matmul_dtype == "tf32" and self.device.type != "cuda":
            raise SaltusError(
                f"--matmul-dtype tf32 needs CUDA, and this run is on {self.device}: use float32 or bfloat16"
            )
        torch.manual_seed(derive_seed(config.seed, "learner"))
        self._eval_episodes = ranks.share(config.eval_episodes + ranks.size - 1 - ranks.rank)
        self._num_threads = config.num_threads or ranks.num_threads
        self._make_env = environment_maker(config)
        self.env = self.make_training_env()
        dimensions = Dimensions.of(self.env)
        self.agent = Agent(config, dimensions, self.device, ranks)
        if ranks.rank > 0:  # equal networks, then other noise
            torch.manual_seed(derive_seed(config.seed, "learner", ranks.rank))
        self.learner = Learner(self.agent)
        _log.info(self._describe_memory())
        capacity, seed = ranks.share(config.capacity), derive_seed(config.seed, "buffer", ranks.rank)
        n_step = config.rewards_per_target(self.env.action_dim)
        self.buffer = ReplayBuffer(
            capacity, dimensions, self.device, seed, n_step, self.agent.gamma, per_host=ranks.per_host
        )
        longest_repeat = config.longest_repeat(self.env.dt)
        self.noise = RepeatedNoise(self.env.num_envs, self.env.action_dim, longest_repeat, self.device)
        self.observation = self.env.reset()
        self.metrics: dict[str, torch.Tensor] = {}
        self.env_steps = self.vector_steps = 0
        self.best: dict[str, Any] = {}
        self.evaluation_pending = self.ended = False
        self.health = self._new_health()
        self._logged: dict[str, float] = {}  # totals at the last row of metrics
        self.failed_saves, self._saves_fail = 0, False
        self._saved: tuple[int, bool] | None = None  # env steps and pending evaluation of the last save
        self._seconds_before, self._started = 0.0, time.monotonic()

    def make_training_env(self) -> Environment:
        """An environment with this rank's share of the training worlds."""
        config = self.config
        return self._make_env(
            self.ranks.share(config.num_envs),
            device=self.device,
            seed=derive_seed(config.seed, "environment", self.ranks.rank),
            simulation=replace(config.simulation, num_threads=self._num_threads),
        )

    def make_evaluation_env(self) -> Environment:
        """An environment for actions on the CPU, with a world for each of this rank's episodes.

        Tasks of saltus are simulated by the CPU engine with the model's own solver, so that returns are comparable
        between runs.
        """
        config, rank = self.config, self.ranks.rank
        stream = f"evaluation of rank {rank}" if rank else "evaluation"
        return self._make_env(
            self._eval_episodes,
            simulation_device=self.device,
            seed=derive_seed(config.seed, stream, self.env_steps),
            simulation=Simulation(physics="cpu", num_threads=self._num_threads),
            check_task=False,  # the training worlds were checked
        )

    def _new_health(self) -> Health:
        target_entropy = float(self.agent.loss.target_entropy)
        initial = self.config.initial_temperature(self.env.action_dim)
        return Health(self.config, self.env.max_episode_steps, target_entropy, initial)

    def _describe_memory(self) -> str:
        """Memory of replay buffer and agent, with the options that set it."""
        row = transitions.num_bytes(*self.agent.dimensions.widths)
        capacity = self.ranks.share(self.config.capacity)
        return (
            f"memory on {self.device}: replay buffer: {capacity:,} transitions, {capacity * row / 1e6:,.0f} MB "
            f"(--buffer-size); learner: {self.agent.num_bytes / 1e6:,.1f} MB (--actor-hidden, --critic-hidden)"
        )

    @property
    def progress(self) -> float:
        """Share of the run's length that is done, in [0, 1]. Rank 0's clock decides; the others wait for it."""
        seconds = 0.0 if self.config.minutes is None else self.ranks.from_rank_0(self.seconds)
        return self.config.progress(self.env_steps, seconds)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.ended and not self.evaluation_pending

    @property
    def seconds(self) -> float:
        """Wall-clock time of the run so far, including previous sessions."""
        return self._seconds_before + time.monotonic() - self._started

    @property
    def learning(self) -> bool:
        """Whether the first round of updates is due, or past: until then, actions are random."""
        return self.config.learning(self.vector_steps)

    def due(self, interval: int) -> bool:
        """Whether the last vector step passed a multiple of `interval` env steps."""
        return self.env_steps // interval > (self.env_steps - self.config.num_envs) // interval

    def act(self) -> torch.Tensor:
        """Actions in [-1, 1] of this rank's worlds, (num_envs, action_dim).

        They are uniform until the first update is due, then the policy's.

        The actions are on the physics' device. If that is not the learner's device, the copy synchronises here, so
        that the physics does not wait for updates launched after this call.

        Raises:
            DivergenceError: actions are not finite (checked with the CPU engine only).
        """
        if self.learning:
            action = self.learner.act(self.observation, self.noise())
        else:
            action = self.agent.actor.random(torch.rand(self.env.num_envs, self.env.action_dim, device=self.device))
        action = self._to_physics(action)
        if action.device.type == "cpu" and not torch.isfinite(action).all():
            self.agent.check_finite(self.metrics | {"action": action.sum().to(self.device)})
        return action

    def _to_physics(self, action: torch.Tensor) -> torch.Tensor:
        return action.to(self.env.simulation_device)

    def compile(self, logger: Logger, stopping: Callable[[], bool] = lambda: False) -> bool:
        """Compile the updates unless they are compiled; return whether it tried. Changes no state of the run.

        Ends early, with updates that are not compiled, after `stopping()` becomes true.
        """
        if not self.learner.compiling:
            return False
        logger.phase("compiling the updates")
        self.learner.compile(self.buffer, stopping)
        if self.learner.compiled:
            logger.say(f"compiled the updates in {self.learner.compile_seconds:.0f} s")
        return True

    def learn(self, logger: Logger) -> None:
        """Do one round of updates."""
        self.compile(logger)
        logger.phase("learning")
        self.agent.apply_schedules(self.progress, self.env_steps, self.env.dt)
        self.metrics |= self.learner.round(self.buffer, self.config.updates_per_round)

    def step(self, action: torch.Tensor) -> TensorDict:
        """Step the worlds with actions in [-1, 1], (num_envs, action_dim); return the transition."""
        transition, self.observation = self.env.step(action)
        self.env_steps += self.config.num_envs
        self.vector_steps += 1
        self.agent.observe(transition)
        return transition

    def log(self, logger: Logger) -> None:
        """Write a row of metrics: rates and means since the last row, metrics of the latest updates.

        Raises:
            DivergenceError: a metric is not finite.
            SaltusError: the ranks' networks differ.
        """
        metrics = self.agent.check_finite(mean_metrics(self.metrics, self.ranks) | self.agent.settings())
        seconds = self.seconds - self._logged.get("seconds", 0.0)
        reports = compare_ranks(self.agent, self.env.statistics(), seconds)
        totals = add_statistics(reports) | self._counters()
        since = {name: value - self._logged.get(name, 0.0) for name, value in totals.items()}
        self._logged = totals
        row = metrics_row(self.config, totals, since, metrics) | describe_rates(reports, since["env_steps"])
        logger.metrics(row)
        self._warn(logger, self.health.metrics(row))

    def _counters(self) -> dict[str, float]:
        counters = {"env_steps": self.env_steps, "gradient_steps": self.learner.gradient_steps}
        return {**counters, "seconds": self.seconds}

    def evaluate(self, logger: Logger, stopping: Callable[[], bool] = lambda: False) -> None:
        """Play whole episodes with the deterministic policy, and write a row of their returns.

        The initial states depend on the seed and on `env_steps`. The policy is kept as `best`, and written to a file,
        if no episode failed and no earlier policy had a higher mean return. If `stopping()` becomes true,
        `evaluation_pending` is set instead. Each rank plays its share of the episodes.

        Raises:
            DivergenceError: a parameter is not finite.
        """
        logger.phase("evaluating")
        self.agent.check_parameters()
        self.evaluation_pending = True
        parts = [part for part in self.ranks.gather(self._play_share(stopping)) if part is not None]
        if len(parts) < self.ranks.size:
            return
        self.evaluation_pending = False
        result = Evaluation.join(parts)
        row = evaluation_row(self._counters(), result)
        excluded = "; not kept as the best policy, because of the failures" if result.failed else ""
        logger.evaluation(row, result.summary() + excluded, episode_rows(self.env_steps, result))
        self._warn(logger, self.health.evaluation(row))
        if not result.failed and result.mean >= self.best.get("return_mean", -math.inf):
            state = self.agent.policy_state()
            self.best = {"return_mean": result.mean, "env_steps": self.env_steps, "policy": state}
            if self.ranks.rank == 0:
                best_policy.save(logger.run_dir, self.config, self.best)

    def _play_share(self, stopping: Callable[[], bool]) -> Evaluation | None:
        """Play this rank's share of an evaluation's episodes; None if `stopping()` becomes true."""
        if self._eval_episodes == 0:
            return Evaluation((), (), 0)
        policy = self.agent.policy_on_cpu()  # a GPU would take longer to answer for a few worlds
        return evaluate_until(stopping, policy, self.make_evaluation_env())

    @staticmethod
    def _warn(logger: Logger, messages: list[str]) -> None:
        for message in messages:
            logger.say(f"warning: {message}")

    def recall(self, logger: Logger) -> None:
        """Restore `health` from the rows of the run's tables, so that a resumed run repeats no warning."""
        self.health = self._new_health()
        rows = [(row, self.health.metrics) for row in logger.earlier_rows(METRICS)]
        rows += [(row, self.health.evaluation) for row in logger.earlier_rows(EVALUATIONS)]
        for row, watch in sorted(rows, key=lambda item: item[0]["env_steps"]):  # stable: metrics precede an evaluation
            watch(defaultdict(lambda: math.nan, row))  # a column may have been removed

    def save(self, logger: Logger, optional: bool = False) -> None:
        """Write a checkpoint, unless the last save was of the same state.

        Args:
            logger: the run's logger.
            optional: whether the run, if it is not one of several ranks, continues if the checkpoint cannot be written.

        Raises:
            DivergenceError: a metric or parameter is not finite.
            CheckpointError: the checkpoint could not be written, and is not optional.
        """
        self.run_dir = logger.run_dir
        state = self.env_steps, self.evaluation_pending
        if state == self._saved:
            return
        logger.phase("saving")
        logger.sync()  # before the checkpoint, so that no power cut loses rows that a resumed run does not repeat
        self.agent.check_finite(mean_metrics(self.metrics, self.ranks))
        self.agent.check_parameters()
        try:
            rank_state.save(self.run_dir / CHECKPOINTS, self.config, self.state_dict(), self.ranks)
        except checkpoint.CheckpointError as error:
            if not optional or self.ranks.size > 1:  # torchrun may start failed ranks again
                again = "resume the run" if self.env_steps else "start the run again"
                raise checkpoint.CheckpointError(f"{error}, then {again}") from error
            if not self._saves_fail:
                logger.say(f"warning: {error}. The run continues, and writes its next checkpoint if it can")
            self.failed_saves, self._saves_fail = self.failed_saves + 1, True
            return
        if self.ranks.rank == 0:
            best_policy.remove(self.run_dir)
        self._saved, self._saves_fail = state, False

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on, as a checkpoint's state. Waits for all ranks."""
        return {
            "device": self.device.type,
            "ranks": self.ranks.size,
            "env_steps": self.env_steps,
            "vector_steps": self.vector_steps,
            "seconds": self.seconds,
            "logged": self._logged,
            "metrics": self.metrics,
            "observation": self.observation,
            "environment": self.env.get_state().to_dict(),
            "buffer": self.buffer.state_dict(),
            "agent": self.agent.state_dict(),
            "gradient_steps": self.learner.gradient_steps,
            "noise": self.noise.state_dict(),
            "best": self.best,
            "evaluation_pending": self.evaluation_pending,
            "ended": self.ended,
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`, or from a state of another number of ranks (see `rank_state.load_state`).

        Raises:
            CheckpointError: the state was saved on another kind of device.
        """
        if state["device"] != self.device.type:
            raise checkpoint.CheckpointError(
                f"the run was saved on {state['device']}, and {self.device.type} draws other random numbers: resume it "
                f"on a machine with {state['device']}"
            )
        self.env_steps, self.vector_steps = state["env_steps"], state["vector_steps"]
        self._seconds_before, self._started = state["seconds"], time.monotonic()
        self._logged = state["logged"]
        self.evaluation_pending, self.ended = state["evaluation_pending"], state["ended"]
        self.best = deepcopy(state["best"])  # else its tensors would keep the whole file mapped
        self.metrics = {name: value.to(self.device) for name, value in state["metrics"].items()}
        self.agent.load_state_dict(state["agent"])
        self.learner.gradient_steps = state["gradient_steps"]
        dealt = "environment" not in state
        if dealt:
            self.buffer.refill(**state["buffer"])
            self._begin_on_new_ranks()
        else:
            self.observation = state["observation"].to(self.device)
            self.env.set_state(state["environment"])
            self.buffer.load_state_dict(state["buffer"])
        if dealt or not self.env.resumes_exactly:
            self.observation = self.env.reset()
            self.buffer.truncate_newest()
            if self.agent.normalizers.rewards is not None:
                self.agent.normalizers.rewards.returns.zero_()
        if not dealt:
            self.noise.load_state_dict(state["noise"])
            torch.set_rng_state(state["random"])
            if state["random_cuda"] is not None and self.device.type == "cuda":
                torch.cuda.set_rng_state(state["random_cuda"], self.device)

    def _begin_on_new_ranks(self) -> None:
        """Draw numbers that no rank has drawn, and count the new worlds' statistics from 0."""
        stream = f"rank {self.ranks.rank} of {self.ranks.size} from {self.env_steps} env steps"
        torch.manual_seed(derive_seed(self.config.seed, stream))
        self.buffer.generator.manual_seed(derive_seed(self.config.seed, stream, 1))
        self.env.seed(derive_seed(self.config.seed, stream, 2))
        self._logged = {name: value for name, value in self._logged.items() if name in self._counters()}
