"""Exact metrics of a scored test set."""

from __future__ import annotations

from anomaly_bench.metrics.metrics import METRICS, PRO_LIMIT, Evaluation, Metric, MetricLevel, evaluate

__all__ = ["METRICS", "PRO_LIMIT", "Evaluation", "Metric", "MetricLevel", "evaluate"]
