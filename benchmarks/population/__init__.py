"""Many runs of a recipe at once, on one device."""
