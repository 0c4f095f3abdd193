"""Evaluate any model on images whose places are known: maps, scores, intervals, findings."""

from attnviz.evaluation.evaluation import evaluate
from attnviz.evaluation.result import CheckFailed, Evaluation

__all__ = ["CheckFailed", "Evaluation", "evaluate"]
