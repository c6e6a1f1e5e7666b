"""A simulated vLLM server: `splitgym engine`.

`process` holds the engines of a process, `server` is one of them: OpenAI's protocol as vLLM speaks it, over
the simulator's own rules (`splitgym.sim.live`) in real time (`clock`).
"""

from splitgym.router.engine.options import EngineOptions
from splitgym.router.engine.process import EngineHost, Engines, run, running

__all__ = ["EngineHost", "EngineOptions", "Engines", "run", "running"]
