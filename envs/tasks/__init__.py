"""The built-in tasks, which equal Gymnasium's bit for bit."""

from envs.tasks.ant import Ant
from envs.tasks.half_cheetah import HalfCheetah
from envs.tasks.hopper import Hopper
from envs.tasks.humanoid import Humanoid
from envs.tasks.humanoid_standup import HumanoidStandup
from envs.tasks.inverted_double_pendulum import InvertedDoublePendulum
from envs.tasks.inverted_pendulum import InvertedPendulum
from envs.tasks.pendulum import Pendulum
from envs.tasks.pusher import Pusher
from envs.tasks.reacher import Reacher
from envs.tasks.swimmer import Swimmer
from envs.tasks.walker2d import Walker2d

BUILT_IN = {
    "Ant-v5": Ant,
    "HalfCheetah-v5": HalfCheetah,
    "Hopper-v5": Hopper,
    "Humanoid-v5": Humanoid,
    "HumanoidStandup-v5": HumanoidStandup,
    "InvertedDoublePendulum-v5": InvertedDoublePendulum,
    "InvertedPendulum-v5": InvertedPendulum,
    "Pendulum-v1": Pendulum,
    "Pusher-v5": Pusher,
    "Reacher-v5": Reacher,
    "Swimmer-v5": Swimmer,
    "Walker2d-v5": Walker2d,
}
