"""Runs: their settings, folders, checkpoints and reports, and the use of the models that they trained."""
