"""A joint network that begins with another's sizes: `learner.start` of a bundle that only resizes."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")

from agents.config import resolve
from agents.evaluation import Agent, make_codec
from agents.export import export_run
from agents.models import build_model, load_network
from agents.priors import find_prior
from splitgym.cluster import Cluster
from splitgym.errors import ConfigError
from splitgym.observation import observation_space
from splitgym.policy.golden import made_up_states
from splitgym.schedulers import Residual
from tests.test_agents_evaluation import MACHINES
from tests.test_policy_bundle import make_run


def joint(hidden: int, prior: str | None) -> Agent:
    made = resolve(
        {
            "env": "joint",
            "cluster": {"machines": MACHINES},
            "environment": {"prior": prior},
            "learner": {"hidden": hidden},
        }
    )
    weights, codec = find_prior(prior), make_codec(made, 4)
    space = observation_space(4, prior=len(weights) > 0)
    return Agent(build_model(made, space, codec.space, prior=weights.tolist()), codec, 4)


def test_it_resizes_as_that_network_and_routes_as_its_prior(tmp_path):
    made, alone = make_run(tmp_path / "run", "pool_sizing", "ppo")
    export_run(tmp_path / "run", tmp_path / "sizes")
    agent, before = joint(16, "index-tuned"), joint(16, "index-tuned")
    load_network(agent.model, str(tmp_path / "sizes"))
    prior = Residual(weights=tuple(find_prior("index-tuned").tolist()))
    cluster = Cluster.resolve(replace(made.cluster, confine=True))
    moved = []
    for number, (view, request) in enumerate(made_up_states(cluster, 30)):
        if number == 0:
            for one in (agent, alone, before, prior):
                one.reset(view, 0)
        moved.append([one.resize(view) for one in (agent, alone, before)])
        assert agent.route(view, request) == prior.route(view, request)
    ours, theirs, random = np.array(moved).T
    assert (ours == theirs).all() and len(set(ours)) > 1 and (random != theirs).any()


def test_other_widths_and_routing_networks_are_refused(tmp_path):
    make_run(tmp_path / "run", "pool_sizing", "ppo")
    export_run(tmp_path / "run", tmp_path / "sizes")
    with pytest.raises(ConfigError, match=r"does not fit learner\.start"):
        load_network(joint(8, "index-tuned").model, str(tmp_path / "sizes"))
    make_run(tmp_path / "router", "routing", "ppo")
    export_run(tmp_path / "router", tmp_path / "routes")
    with pytest.raises(ConfigError, match=r"does not fit learner\.start"):
        load_network(joint(16, None).model, str(tmp_path / "routes"))
