"""One round of a fleet, shared among threads in compiled code.

Each thread has a range of environments and takes them one by one; who has none left takes from the others.
A thread that has done its part looks out for the next round for some microseconds before it sleeps: to wake
it up takes 10 to 30 us. Nobody waits for a thread that has not come: the others do its part.
"""

from splitgym.envs.fleet.atomics import add_shared, shared_at, swap_shared
from splitgym.envs.fleet.kernel import ENDED, LACKS, step_seat
from splitgym.envs.fleet.records import office_at
from splitgym.sim.compiled.reach import compiled, long_at, put_long, with_schedulers

LINE = 8
"""Numbers of a cache line: what threads write apart stands apart."""

# Places in the (ROOM + THREAD_ROOM x threads,) int64 array of a round.
OPEN, ACTIVE, LACKING, OVER = 0, LINE, 2 * LINE, 3 * LINE
# OPEN: number of the round in progress, 0 between rounds, CLOSED for ever. ACTIVE: threads that are in it.
# LACKING, OVER: environments whose simulation lacks something; that are over.
ROOM = 4 * LINE
NEXT, END, ASLEEP, SEEN = 0, 1, LINE, 2 * LINE
# Of each thread: its range of `places`; it sleeps; the last round it was in.
THREAD_ROOM = 3 * LINE
CLOSED = -1


@compiled
def of_thread(thread, place):
    """Place in the array of a thread's number."""
    return ROOM + THREAD_ROOM * thread + place


@compiled
def take(shared, thread, threads):
    """The next place to work on, from the thread's own range or another's; -1 when there is none."""
    for k in range(threads):
        whose = (thread + k) % threads
        end = long_at(shared, of_thread(whose, END))
        if shared_at(shared, of_thread(whose, NEXT)) < end:
            place = add_shared(shared, of_thread(whose, NEXT), 1)
            if place < end:
                return place
    return -1


@with_schedulers
def work(office_address, shared, thread, threads):
    """Step environments until there are none left."""
    office = office_at(office_address, 0)
    lacking, over = 0, 0
    place = take(shared, thread, threads)
    while place >= 0:
        found = step_seat(office, long_at(office.places, place))
        lacking += found == LACKS
        over += found == ENDED
        place = take(shared, thread, threads)
    if lacking:
        add_shared(shared, LACKING, lacking)
    if over:
        add_shared(shared, OVER, over)


@with_schedulers
def lead(office_address, shared, count, threads, wanted):
    """Begin a round.

    Args:
        office_address: of the `OFFICE` record, whose `places` say what is stepped.
        shared: address of the round's array.
        count: environments to step.
        threads: that share them, this one included.
        wanted: of these, worth being woken up.

    Returns:
        -1 when the round has been finished; else the threads to wake up, as bits, before `finish`.
    """
    swap_shared(shared, LACKING, 0)
    swap_shared(shared, OVER, 0)
    for thread in range(threads):
        put_long(shared, of_thread(thread, END), count * (thread + 1) // threads)
        swap_shared(shared, of_thread(thread, NEXT), count * thread // threads)
    asleep = 0
    if threads > 1:
        number = long_at(shared, of_thread(0, SEEN)) + 1
        put_long(shared, of_thread(0, SEEN), number)
        swap_shared(shared, OPEN, number)
        for thread in range(1, wanted):
            asleep |= swap_shared(shared, of_thread(thread, ASLEEP), 0) << thread
    if asleep:
        return asleep
    return -1 if finish(office_address, shared, threads, 1 << 12) else 0


@with_schedulers
def finish(office_address, shared, threads, patience):
    """Take part in the round that `lead` began, and end it.

    Args:
        patience: looks at the other threads before giving up.

    Returns:
        is it over? Else some thread is at its last environment: call again.
    """
    work(office_address, shared, 0, threads)
    swap_shared(shared, OPEN, 0)
    looks = 0
    while shared_at(shared, ACTIVE) != 0:
        looks += 1
        if looks > patience:
            return False
    return True


@with_schedulers
def serve(office_address, shared, thread, threads, patience):
    """Take part in rounds until none has come for a while. Returns whether there may be more later.

    Args:
        thread: which one, from 1 on.
        patience: looks at OPEN before falling asleep.
    """
    seen = long_at(shared, of_thread(thread, SEEN))
    idle = 0
    while True:
        number = shared_at(shared, OPEN)
        if number == CLOSED:
            return False
        if number != 0 and number != seen:
            add_shared(shared, ACTIVE, 1)
            if shared_at(shared, OPEN) == number:  # and `finish` will wait for us
                work(office_address, shared, thread, threads)
                seen, idle = number, 0
            add_shared(shared, ACTIVE, -1)
        idle += 1
        if idle > patience:
            put_long(shared, of_thread(thread, SEEN), seen)
            swap_shared(shared, of_thread(thread, ASLEEP), 1)
            number = shared_at(shared, OPEN)
            # A round has come meanwhile: take it, unless we are being woken up for it.
            if number == 0 or number == seen or swap_shared(shared, of_thread(thread, ASLEEP), 0) == 0:
                return True
            idle = 0


@compiled
def look_out(shared, looks):
    """Do what an idle thread does so many times: to measure how long it takes."""
    found = 0
    for _ in range(looks):
        found += shared_at(shared, OPEN)
    return found
