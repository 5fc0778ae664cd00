"""Evaluation by lm-evaluation-harness: adapter, own tasks, the model card's suites, report."""
