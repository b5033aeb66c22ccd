"""The built-in tasks, which equal Gymnasium's bit for bit."""

from envs.tasks.half_cheetah import HalfCheetah
from envs.tasks.hopper import Hopper
from envs.tasks.humanoid import Humanoid
from envs.tasks.inverted_pendulum import InvertedPendulum

BUILT_IN = {
    "HalfCheetah-v5": HalfCheetah,
    "Hopper-v5": Hopper,
    "Humanoid-v5": Humanoid,
    "InvertedPendulum-v5": InvertedPendulum,
}
