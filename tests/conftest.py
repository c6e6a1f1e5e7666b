"""Settings that every test shares."""

import secrets
from collections.abc import Iterator

import matplotlib
import pytest
from hypothesis import settings

matplotlib.use("Agg")

# No test of a time limit: a deadline would fail on a busy machine.
settings.register_profile("splitgym", deadline=None, print_blob=True)
settings.load_profile("splitgym")


@pytest.fixture(scope="session")
def ray_loopback() -> Iterator[None]:
    """Ray keeps to 127.0.0.1, tells nobody, and lets in nobody else. Set before it is first imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(16))
        yield


@pytest.fixture(scope="session")
def ray_cluster(ray_loopback: None) -> Iterator[str]:
    """The address of two nodes of one CPU each."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "object_store_memory": 80 * 2**20}
    started = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    nodes = [started.head_node]
    try:
        nodes.append(started.add_node(**node))
        yield started.address
    finally:
        started.shutdown()
    assert not any(node.any_processes_alive() for node in nodes)
