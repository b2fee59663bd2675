"""lm-evaluation-harness as the runner of `evaluate --tasks`."""
