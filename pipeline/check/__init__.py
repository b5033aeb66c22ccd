"""``saltus check``: tries a task for mistakes and says what training would meet."""
