"""Measure a live OpenAI-compatible vLLM server into a profile: `splitgym profile measure`."""

from splitgym.measuring.plan import Limits, Plan, Step, make_plan
from splitgym.measuring.run import Outcome, measure
from splitgym.measuring.store import Store

__all__ = ["Limits", "Outcome", "Plan", "Step", "Store", "make_plan", "measure"]
