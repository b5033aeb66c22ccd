"""``saltus new``: writes a task for a model."""
