"""Play an episode of Hopper-v5 with the policy of `saltus export`, without saltus: run_exported_policy.py FOLDER."""

import json
import sys
from pathlib import Path

import mujoco
import numpy as np
import torch


def start(model, facts):
    """Begin an episode."""
    data = mujoco.MjData(model)
    for field, values in facts["start"].items():
        setattr(data, field, values)
    mujoco.mj_forward(model, data)
    return data


def step(model, data, facts, action):
    """Take a control step."""
    for control, one in enumerate(facts["ctrl"]):
        data.ctrl[control] = one["offset"] + np.dot(one["scales"], action[one["actions"]])
    mujoco.mj_step(model, data, facts["frame_skip"])
    if facts["contact_forces"]:
        mujoco.mj_rnePostConstraint(model, data)
    if facts["recompute_derived"]:
        mujoco.mj_step1(model, data)


def main(folder):
    """Play an episode and print its return."""
    facts = json.loads((folder / "policy.json").read_text())
    model = mujoco.MjModel.from_binary_path(str(folder / facts["model"]))
    data = start(model, facts)
    policy = torch.export.load(folder / "policy.pt2").module()
    # ONNX: session = onnxruntime.InferenceSession(folder / "policy.onnx"), and below
    #       action = session.run(None, {"observation": observation[None]})[0][0]
    total, steps, healthy = 0.0, 0, True
    while healthy and steps < facts["max_episode_steps"]:
        observation = np.concatenate([data.qpos[1:], data.qvel.clip(-10, 10)]).astype(np.float32)
        action = policy(torch.from_numpy(observation)[None])[0].numpy()
        x = data.qpos[0]
        step(model, data, facts, action)
        velocity = (data.qpos[0] - x) / (facts["frame_skip"] * facts["timestep"])
        rest = np.concatenate([data.qpos[2:], data.qvel])
        healthy = data.qpos[1] > 0.7 and abs(data.qpos[2]) < 0.2 and np.abs(rest).max() < 100
        total, steps = total + velocity + healthy - 0.001 * np.square(action).sum(), steps + 1
    print(f"return {total:.6f} in {steps} steps")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
