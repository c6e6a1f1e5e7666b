"""splitgym: learn the scheduler of a Splitwise-style LLM inference cluster."""

__version__ = "0.1.0"
