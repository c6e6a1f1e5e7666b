"""Networks as NumPy and ONNX: an observation in, scores of decisions out. Nothing here knows torch.

A runtime offers `pair_scores` (M, M) for (prompt machine, token machine) and `size_scores` (2K + 1,) for the
machines to move; higher is better. One of the two may be missing.
"""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from splitgym.errors import PolicyError
from splitgym.observation import (
    CLUSTER_FEATURES,
    MACHINE_FEATURES,
    PRIOR_FEATURES,
    REQUEST_FEATURES,
    Observation,
)

F32 = NDArray[np.float32]
Weights = dict[str, NDArray[Any]]

_WIDTH = {
    "machines": len(MACHINE_FEATURES),
    "cluster": len(CLUSTER_FEATURES),
    "request": len(REQUEST_FEATURES),
}
PRIOR = "prior"
"""Part of an observation, and among the weights the flat vector that its costs come from."""
PRIOR_SQUASH = np.float32(0.25)
"""As features, costs of a prior are squashed: x / (x + 0.25)."""


class Runtime(Protocol):
    """What scores decisions."""

    def pair_scores(self, observation: Observation) -> F32:
        """(M, M) for an observation of M machines, padding included."""

    def size_scores(self, observation: Observation) -> F32:
        """(2K + 1,)."""


class ScorerRuntime:
    """`agents.policies.DecisionNet`, for any number of machines.

    Args:
        weights: its state dict, float32.
        hidden: width of all layers.
        pairs: does it route?
        sizes: 2K + 1 where it resizes, else 0.
        prior: does it add to the costs of a prior? Then the weights hold `prior_scale` too.

    Raises:
        PolicyError: an array is missing, left over or of another shape.
    """

    def __init__(self, weights: Weights, hidden: int, pairs: bool, sizes: int, prior: bool = False) -> None:
        shared = _WIDTH["cluster"] + _WIDTH["request"]
        own = _WIDTH["machines"] + len(PRIOR_FEATURES) * prior
        self._prior = prior
        expected = {
            "encoder.own.weight": (hidden, own),
            "encoder.own.bias": (hidden,),
            "encoder.shared.weight": (hidden, shared),
            "encoder.second.weight": (hidden, hidden),
            "encoder.second.bias": (hidden,),
            "encoder.context.weight": (hidden, 2 * hidden + shared),
            "encoder.context.bias": (hidden,),
        }
        if pairs:
            expected |= {
                "machine.weight": (hidden, hidden),
                "machine.bias": (hidden,),
                "around.weight": (hidden, hidden),
                "scores.weight": (3, hidden),
                "scores.bias": (3,),
            }
        if sizes:
            expected |= {
                "sizes.0.weight": (hidden, hidden),
                "sizes.0.bias": (hidden,),
                "sizes.2.weight": (sizes, hidden),
                "sizes.2.bias": (sizes,),
            }
        if prior:
            expected |= {"prior_scale": (1,)}
        check_arrays(weights, expected)
        # Transposed once: rows times columns of a contiguous matrix is what BLAS likes.
        self._w = {name: np.ascontiguousarray(array.T) for name, array in weights.items()}

    @property
    def weights(self) -> Weights:
        """The state dict that it was made of."""
        return {name: array.T for name, array in self._w.items()}

    def _encode(self, observation: Observation) -> tuple[Any, Any]:
        """(M, hidden) codes, zero for padding, and the (hidden,) context."""
        w = self._w
        shared = np.concatenate((observation["cluster"], observation["request"]))
        own = observation["machines"]
        if self._prior:
            costs = observation[PRIOR]
            own = np.concatenate((own, costs / (costs + PRIOR_SQUASH)), axis=1)
        code: Any = own @ w["encoder.own.weight"]
        code += shared @ w["encoder.shared.weight"] + w["encoder.own.bias"]
        np.maximum(code, 0.0, out=code)
        code = code @ w["encoder.second.weight"]
        code += w["encoder.second.bias"]
        np.maximum(code, 0.0, out=code)
        mask = observation["mask"]
        code *= mask[:, None]
        real = max(np.float32(1.0), mask.sum())
        pooled = np.concatenate((code.sum(axis=0) / real, code.max(axis=0), shared))
        context = pooled @ w["encoder.context.weight"] + w["encoder.context.bias"]
        return code, np.maximum(context, 0.0)

    def pair_scores(self, observation: Observation) -> F32:
        """a[p] + b[t], and s[p] more where p = t; less the prior's costs."""
        w = self._w
        code, context = self._encode(observation)
        hidden: Any = code @ w["machine.weight"]
        hidden += context @ w["around.weight"] + w["machine.bias"]
        np.maximum(hidden, 0.0, out=hidden)
        scores = hidden @ w["scores.weight"] + w["scores.bias"]
        if self._prior:
            costs = observation[PRIOR] * w["prior_scale"]
            scores[:, :2] -= costs[:, :2]
            scores[:, 2] -= costs[:, 2] - costs[:, 1]
        pairs: F32 = scores[:, 0, None] + scores[None, :, 1]
        pairs.flat[:: len(pairs) + 1] += scores[:, 2]
        return pairs

    def size_scores(self, observation: Observation) -> F32:
        """Of the numbers of machines to move."""
        w = self._w
        _, context = self._encode(observation)
        hidden = np.maximum(context @ w["sizes.0.weight"] + w["sizes.0.bias"], 0.0)
        scores: Any = hidden @ w["sizes.2.weight"] + w["sizes.2.bias"]
        return scores


class MlpRuntime:
    """ReLU layers over the flattened observation, as stable-baselines3's default networks are.

    Args:
        weights: "0.weight", "0.bias", "1.weight" and so on.
        inputs: parts of the observation in the order in which they are joined.
        layers: number of linear layers.
        max_machines: M of the observation.
        outputs: M * M for routing, 2K + 1 for sizing.

    Raises:
        PolicyError: an array is missing, left over or of another shape.
    """

    def __init__(
        self, weights: Weights, inputs: tuple[str, ...], layers: int, max_machines: int, outputs: int
    ) -> None:
        size = {"mask": max_machines, **_WIDTH, "machines": max_machines * _WIDTH["machines"]}
        width = sum(size[name] for name in inputs)
        expected: dict[str, tuple[int, ...]] = {}
        for i in range(layers):
            bias = weights.get(f"{i}.bias", np.zeros(0, np.float32))
            out = outputs if i == layers - 1 else int(bias.size)
            expected |= {f"{i}.weight": (out, width), f"{i}.bias": (out,)}
            width = out
        check_arrays(weights, expected)
        self._inputs, self._machines = inputs, max_machines
        self._layers = [
            (np.ascontiguousarray(weights[f"{i}.weight"].T), weights[f"{i}.bias"]) for i in range(layers)
        ]

    def _outputs(self, observation: Observation) -> F32:
        x: F32 = np.concatenate([observation[name].ravel() for name in self._inputs])
        for i, (weight, bias) in enumerate(self._layers):
            x = x @ weight + bias
            if i < len(self._layers) - 1:
                np.maximum(x, 0.0, out=x)
        return x

    def pair_scores(self, observation: Observation) -> F32:
        """The flat outputs p * M + t as a matrix."""
        return self._outputs(observation).reshape(self._machines, self._machines)

    def size_scores(self, observation: Observation) -> F32:
        """Of the numbers of machines to move."""
        return self._outputs(observation)


class OnnxRuntime:
    """A network in ONNX, run by onnxruntime on one thread.

    Args:
        model: the bytes of `policy.onnx`.
        outputs: names that must be there.
        prior: do observations hold the costs of a prior?

    Raises:
        PolicyError: onnxruntime is missing, or refuses the model, or inputs and outputs have other names.
    """

    def __init__(self, model: bytes, outputs: tuple[str, ...], prior: bool = False) -> None:
        self._model, self._outputs, self._prior = model, outputs, prior
        try:
            import onnxruntime
        except ImportError:
            raise PolicyError(
                "policy.onnx needs onnxruntime: pip install 'splitgym[router]', or onnxruntime alone"
            ) from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4  # its refusal becomes our error; stderr stays quiet
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises kinds of its own
            raise PolicyError(f"policy.onnx is refused by onnxruntime ({_first_line(error)})") from None
        names = {given.name for given in self._session.get_inputs()}
        unknown = names - {"machines", "cluster", "request", "mask"} - ({PRIOR} if prior else set())
        if unknown:
            raise PolicyError(f"policy.onnx has the input {sorted(unknown)[0]!r}, which no observation holds")
        self._inputs = tuple(sorted(names))
        made = {output.name for output in self._session.get_outputs()}
        missing = [name for name in outputs if name not in made]
        if missing:
            raise PolicyError(f"policy.onnx has no output {missing[0]!r}")

    def __reduce__(self) -> tuple[type["OnnxRuntime"], tuple[bytes, tuple[str, ...], bool]]:
        """Worker processes make their own session of the same bytes."""
        return OnnxRuntime, (self._model, self._outputs, self._prior)

    def _run(self, output: str, observation: Observation) -> F32:
        feed = {name: observation[name][None] for name in self._inputs}
        try:
            (found,) = self._session.run([output], feed)
        except Exception as error:
            raise PolicyError(f"policy.onnx cannot be run ({_first_line(error)})") from None
        return np.asarray(found, np.float32)[0]

    def pair_scores(self, observation: Observation) -> F32:
        """Output `pair`."""
        pairs, machines = self._run("pair", observation), len(observation["mask"])
        if pairs.shape != (machines, machines):
            raise PolicyError(f"policy.onnx gives pairs of shape {pairs.shape} for {machines} machines")
        return pairs

    def size_scores(self, observation: Observation) -> F32:
        """Output `size`."""
        return self._run("size", observation).ravel()


def check_arrays(weights: Weights, expected: dict[str, tuple[int, ...]]) -> None:
    """Refuse weights that are not exactly the ones expected.

    Raises:
        PolicyError: names the first array that is missing, left over, misshapen or not finite.
    """
    for name, shape in expected.items():
        if name not in weights:
            raise PolicyError(f"weights.npz lacks {name}")
        if weights[name].shape != shape:
            raise PolicyError(f"weights.npz: {name} has shape {weights[name].shape}, expected {shape}")
    extra = sorted(weights.keys() - expected.keys())
    if extra:
        raise PolicyError(f"weights.npz holds {extra[0]}, which the architecture does not have")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def as_observation(data: dict[str, Any], prior: bool = False) -> Observation:
    """An observation from lists, float32.

    Args:
        data: its parts.
        prior: is one of them the costs of a prior?

    Raises:
        PolicyError: a part is missing or has another shape.
    """
    names = ("machines", "cluster", "request", "mask", *((PRIOR,) if prior else ()))
    try:
        found = {name: np.asarray(data[name], np.float32) for name in names}
    except (KeyError, TypeError, ValueError):
        raise PolicyError(f"an observation needs {', '.join(names)} as numbers") from None
    m = len(found["mask"])
    shapes = {"machines": (m, _WIDTH["machines"]), "mask": (m,)}
    shapes |= {"cluster": (_WIDTH["cluster"],), "request": (_WIDTH["request"],)}
    shapes |= {PRIOR: (m, len(PRIOR_FEATURES))} if prior else {}
    for name, shape in shapes.items():
        if found[name].shape != shape:
            raise PolicyError(f"an observation's {name} has shape {found[name].shape}, expected {shape}")
    return found
