"""Names of everything that saltus writes to a run's directory."""

LOCK, CONFIG, CHECKPOINTS, TASK = "lock", "config.json", "checkpoints", "task"
BEST_POLICY = "best_policy.pt"
METRICS, EVALUATIONS, EPISODES = "metrics.csv", "evaluations.csv", "evaluation_episodes.csv"
MESSAGES = "messages.txt"
TENSORBOARD, WANDB = "tensorboard", "wandb"  # the latter is wandb's own choice
LEARNING_CURVE, VIDEO = "learning_curve.png", "play.mp4"
EVALUATION, EVALUATION_OF_LAST = "evaluation.json", "evaluation-last.json"  # of the best and of the last policy
GRADIENTS = "gradients.png"
POLICY_FACTS, POLICY_PROGRAM, POLICY_ONNX, POLICY_MODEL = "policy.json", "policy.pt2", "policy.onnx", "policy.mjb"
OWN_NAMES = frozenset({
    LOCK, CONFIG, CHECKPOINTS, TASK, BEST_POLICY, METRICS, EVALUATIONS, EPISODES, MESSAGES, TENSORBOARD, WANDB,
    LEARNING_CURVE, VIDEO, EVALUATION, EVALUATION_OF_LAST, GRADIENTS, POLICY_FACTS, POLICY_PROGRAM, POLICY_ONNX,
    POLICY_MODEL,
})  # fmt: skip
