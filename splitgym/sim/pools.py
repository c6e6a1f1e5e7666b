"""Pools: which one a machine is in by its present work, and which machines a resizing moves."""

from splitgym.sim.machine import Machine
from splitgym.types import Pool


def present_pool(machine: Machine, home: Pool) -> Pool:
    """The home pool, or MIXED while the machine works for the other phase too."""
    if home is Pool.PROMPT:
        return Pool.MIXED if machine.has_token_work else home
    if home is Pool.TOKEN:
        return Pool.MIXED if machine.has_prompt_work else home
    return home


def machines_to_move(machines: list[Machine], home: list[Pool], moves: int, min_left: int) -> list[int]:
    """Machines that `moves` asks for: the least loaded available ones of the pool, lowest index on ties.

    Args:
        machines, home: (M,) the cluster.
        moves: positive from the token to the prompt pool, negative the other way.
        min_left: machines that stay at home in the pool, failed and switching ones not counted.

    Returns:
        At most |moves| indices; fewer where the pool would shrink below `min_left`.
    """
    if moves == 0:
        return []
    pool = Pool.TOKEN if moves > 0 else Pool.PROMPT
    there = [m for m in machines if home[m.index] is pool and m.available]

    def load(machine: Machine) -> tuple[int, int]:
        work = len(machine.inbound) + machine.running if moves > 0 else machine.pending_prompt_tokens
        return work, machine.index

    return [m.index for m in sorted(there, key=load)[: max(0, min(abs(moves), len(there) - min_left))]]
