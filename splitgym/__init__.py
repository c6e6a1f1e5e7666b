"""splitgym: learn the scheduler of a Splitwise-style LLM inference cluster."""

from splitgym.envs.registration import register_all

__version__ = "0.1.0"

register_all()
