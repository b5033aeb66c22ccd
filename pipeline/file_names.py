"""Names of everything that saltus writes to a run's directory."""

LOCK, CONFIG, CHECKPOINTS, TASK = "lock", "config.json", "checkpoints", "task"
METRICS, EVALUATIONS = "metrics.csv", "evaluations.csv"
TENSORBOARD, WANDB = "tensorboard", "wandb"  # the latter is wandb's own choice
LEARNING_CURVE, EVALUATION, VIDEO = "learning_curve.png", "evaluation.json", "play.mp4"
OWN_NAMES = frozenset({
    LOCK, CONFIG, CHECKPOINTS, TASK, METRICS, EVALUATIONS, TENSORBOARD, WANDB, LEARNING_CURVE, EVALUATION, VIDEO,
})  # fmt: skip
