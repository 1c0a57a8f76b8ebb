"""Rollout engines: prompts in, sampled responses with their log-probabilities out."""

from sppo_lit.rollout.randomness import sequence_key, uniforms
from sppo_lit.rollout.torch_engine import TorchEngine

__all__ = ["TorchEngine", "sequence_key", "uniforms"]
