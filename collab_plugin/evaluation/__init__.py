"""Benchmark tasks of lm-evaluation-harness, run against a model that an engine serves."""
