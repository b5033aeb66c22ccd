"""The report as one HTML page without scripts, other files or network."""
