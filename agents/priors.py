"""Whose costs a policy begins from: see `environment.prior`."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agents.evolution import load_residual
from agents.runs import PRIOR_FILE
from splitgym.errors import ConfigError
from splitgym.observation import prior_weights
from splitgym.policy import NetworkPolicy, complete, is_bundle, load, locate
from splitgym.schedulers import Residual
from splitgym.schedulers.index import HINGES, NUM_WEIGHTS, Index
from splitgym.schedulers.residual import index_weights


def find_prior(text: str | None) -> NDArray[np.float64]:
    """The flat weights of a prior, see `splitgym.observation.prior_weights`; empty for None.

    Args:
        text: `index`, `index-tuned`, `pretrained:NAME`, the folder of a bundle or of an `es` or `cem` run, or
            the `prior.npz` of a run folder.

    Raises:
        ConfigError: no index and no residual is called so.
    """
    if text is None or text.startswith("index"):
        return prior_weights(text)
    if text.endswith(".npz"):
        try:
            with np.load(text, allow_pickle=False) as file:
                return prior_weights(file["prior"])
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"{text}: no weights of a prior ({error})") from None
    found = complete(load(locate(text)))[0] if is_bundle(text) else load_residual(text)
    if isinstance(found, NetworkPolicy) and len(found.prior):
        return found.prior  # a network goes on with its own
    routing = getattr(found, "routing", found)
    if isinstance(routing, Residual):
        return prior_weights(routing.params)
    if isinstance(routing, Index):
        weights = index_weights()
        weights[:NUM_WEIGHTS], weights[NUM_WEIGHTS:] = routing.params, (*HINGES, 0.0, 0.0, 0.0)
        return prior_weights(weights)
    raise ConfigError(f"{text} is no index and no residual, so it has no costs to begin from")


def save_prior(folder: Path, prior: NDArray[np.float64]) -> None:
    """Keep a prior in a run folder: what it was read from may change or go."""
    with (folder / PRIOR_FILE).open("wb") as file:
        np.savez(file, prior=prior)
