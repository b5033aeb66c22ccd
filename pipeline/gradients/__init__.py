"""`saltus gradients`: bias and variance of estimators of the actor's gradient, on a trained run."""
