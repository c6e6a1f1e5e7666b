"""KV transfers that share the machines' NICs. Integer arithmetic, so that both engines agree exactly.

A transfer's rate is the smaller of its shares at the two ends: the NIC's bandwidth divided by the transfers
in flight there. Work is counted in units of 1/15,625,000 byte and rates in units of 64 bytes/s: a rate times
nanoseconds is then work (64 / 1e9 = 1 / 15,625,000), and 500 GB still fit 64 bits.
"""

from splitgym.sim.job import Job

WORK_PER_BYTE = 15_625_000
RATE_UNIT_BYTES_PER_S = 64


class Transfer:
    """One KV cache on its way."""

    def __init__(self, job: Job, size_bytes: int, now_ns: int):
        self.job = job
        self.source = job.prompt_machine
        self.target = job.token_machine
        self.left = size_bytes * WORK_PER_BYTE
        self.rate = 0
        self.number = 0
        self.settled_ns = now_ns

    def settle(self, now_ns: int) -> None:
        """Count what was shipped since the last time at the rate of that time."""
        self.left = max(0, self.left - self.rate * (now_ns - self.settled_ns))
        self.settled_ns = now_ns

    @property
    def rest_ns(self) -> int:
        """Time that what is left takes at the present rate, rounded up [ns]."""
        return -(-self.left // self.rate)


class Network:
    """The NICs of a cluster.

    Args:
        bandwidth_bytes_per_s: (M,) by machine.
        shared: transfers in flight share; otherwise each has the whole bandwidth.
    """

    def __init__(self, bandwidth_bytes_per_s: list[int], shared: bool):
        self._units = [max(1, b // RATE_UNIT_BYTES_PER_S) for b in bandwidth_bytes_per_s]
        self._shared = shared
        self._started = 0
        self.in_flight: list[dict[Transfer, None]] = [{} for _ in bandwidth_bytes_per_s]

    def join(self, transfer: Transfer) -> list[Transfer]:
        """Start a transfer. Returns the others whose rate changed, in the order they started."""
        self._started += 1
        transfer.number = self._started
        self.in_flight[transfer.source][transfer] = None
        self.in_flight[transfer.target][transfer] = None
        changed = self._update(transfer)
        changed.remove(transfer)
        return changed

    def leave(self, transfer: Transfer) -> list[Transfer]:
        """End or abort a transfer. Returns the others whose rate changed, in the order they started."""
        del self.in_flight[transfer.source][transfer]
        del self.in_flight[transfer.target][transfer]
        return self._update(transfer)

    def _update(self, cause: Transfer) -> list[Transfer]:
        changed = []
        touched = {**self.in_flight[cause.source], **self.in_flight[cause.target]}
        for transfer in sorted(touched, key=lambda t: t.number):
            rate = min(self._share(transfer.source), self._share(transfer.target))
            if rate != transfer.rate:
                transfer.settle(cause.settled_ns)
                transfer.rate = rate
                changed.append(transfer)
        return changed

    def _share(self, machine: int) -> int:
        if not self._shared:
            return self._units[machine]
        return max(1, self._units[machine] // len(self.in_flight[machine]))
