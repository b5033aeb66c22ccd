"""Names of everything that saltus writes to a run's directory."""

LOCK, CONFIG, CHECKPOINTS, TASK = "lock", "config.json", "checkpoints", "task"
BEST_POLICY = "best_policy.pt"
METRICS, EVALUATIONS, MESSAGES = "metrics.csv", "evaluations.csv", "messages.txt"
TENSORBOARD, WANDB = "tensorboard", "wandb"  # the latter is wandb's own choice
LEARNING_CURVE, EVALUATION, VIDEO = "learning_curve.png", "evaluation.json", "play.mp4"
GRADIENTS = "gradients.png"
POLICY_FACTS, POLICY_PROGRAM, POLICY_ONNX, POLICY_MODEL = "policy.json", "policy.pt2", "policy.onnx", "policy.mjb"
OWN_NAMES = frozenset({
    LOCK, CONFIG, CHECKPOINTS, TASK, BEST_POLICY, METRICS, EVALUATIONS, MESSAGES, TENSORBOARD, WANDB, LEARNING_CURVE,
    EVALUATION, VIDEO, GRADIENTS, POLICY_FACTS, POLICY_PROGRAM, POLICY_ONNX, POLICY_MODEL,
})  # fmt: skip
