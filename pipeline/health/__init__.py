"""Health: warnings when training does not hold."""
