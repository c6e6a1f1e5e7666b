"""Actions and masks of environments, compiled, as the codecs of `splitgym.envs.action`."""

from splitgym.envs.fleet.records import JOINT, ROUTING, SIZING
from splitgym.sim.compiled.loop import answer_resize, answer_route
from splitgym.sim.compiled.reach import compiled, flag_at
from splitgym.sim.compiled.records import machine_at
from splitgym.types import Pool

_PROMPT, _TOKEN = int(Pool.PROMPT), int(Pool.TOKEN)
ROUTE, RESIZE = 1, 2
"""What an environment asks."""


@compiled
def answer(sim, seat, office, first, second, third):
    """Apply an action; one that is not allowed is mapped as `splitgym.envs.action` says."""
    if seat.question == RESIZE:
        number = first if office.kind == SIZING else third
        moves = number - office.max_moves
        from_prompt, from_token = movable(sim, office.min_pool)
        settled = max(-from_prompt, min(from_token, moves))
        none = office.max_machines
        beside = office.kind == JOINT and not (first == none and second == none)
        if settled != moves or beside:
            seat.invalid += 1
        answer_resize(sim, settled)
        return
    p, t = first, second
    if office.one_number:
        p, t = first // office.max_machines, first % office.max_machines
    size = sim.num_machines
    valid = p < size and t < size and prompt_open(sim, p) and token_open(sim, t)
    if not valid:
        p, t = next_open(sim, p, 1), next_open(sim, t, 2)
    if not valid or (office.kind == JOINT and third != office.max_moves):
        seat.invalid += 1
    answer_route(sim, p, t)


@compiled
def open_at(sim, m, row):
    return flag_at(sim.view_flags, row * sim.num_machines + m) != 0


@compiled
def prompt_open(sim, m):
    return open_at(sim, m, 1)


@compiled
def token_open(sim, m):
    return open_at(sim, m, 2)


@compiled
def next_open(sim, wanted, row):
    """The first machine at or above `wanted`, wrapping round, whose flag is set; `wanted` if none is."""
    size = sim.num_machines
    start = wanted if wanted < size else 0
    for step in range(size):
        m = (start + step) % size
        if open_at(sim, m, row):
            return m
    return start


@compiled
def movable(sim, min_pool):
    """(machines that can leave the prompt pool, the token pool), as `splitgym.envs.action.movable`."""
    prompt, token = 0, 0
    for m in range(sim.num_machines):
        machine = machine_at(sim, m)
        if open_at(sim, m, 0):
            prompt += machine.home_pool == _PROMPT
            token += machine.home_pool == _TOKEN
    return max(0, prompt - min_pool), max(0, token - min_pool)


@compiled
def show_allowed(sim, seat, office, out):
    """The next action masks, as the action codecs of `splitgym.envs.action`."""
    out[:] = 0
    count, size, moves = sim.num_machines, office.max_machines, office.max_moves
    if office.kind != ROUTING and seat.question != ROUTE:
        start = 0
        if office.kind == JOINT:
            out[size] = out[2 * size + 1] = 1
            start = 2 * size + 2
        from_prompt, from_token = movable(sim, office.min_pool)
        for number in range(max(0, moves - from_prompt), min(2 * moves, moves + from_token) + 1):
            out[start + number] = 1
        return
    if office.one_number:
        for p in range(count):
            for t in range(count):
                out[p * size + t] = prompt_open(sim, p) and token_open(sim, t)
        return
    second = size + 1 if office.kind == JOINT else size
    for m in range(count):
        out[m] = prompt_open(sim, m)
        out[second + m] = token_open(sim, m)
    if office.kind == JOINT:
        out[2 * size + 2 + moves] = 1
