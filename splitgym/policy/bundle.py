"""Load a bundle, check all of it, and let it decide as a scheduler does."""

import hashlib
import io
import stat
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from splitgym.cluster import Cluster
from splitgym.config import ClusterConfig, from_mapping
from splitgym.envs.action import SizingActions, next_allowed
from splitgym.errors import PolicyError, SplitgymError
from splitgym.observation import Observation, Observer, prior_weights
from splitgym.policy.choose import choose, choose_pair
from splitgym.policy.golden import SCORE_TOLERANCE, after, fill_view, read_request
from splitgym.policy.manifest import (
    MANIFEST,
    MAX_FILE_BYTES,
    MAX_MANIFEST_BYTES,
    Heuristic,
    Manifest,
    Mlp,
    Onnx,
    Scorer,
    has_prior,
    parse_manifest,
)
from splitgym.policy.named import make_routing, make_sizing
from splitgym.policy.runtimes import (
    PRIOR,
    MlpRuntime,
    OnnxRuntime,
    Runtime,
    ScorerRuntime,
    Weights,
    as_observation,
)
from splitgym.types import RequestInfo
from splitgym.view import ClusterView

WEIGHTS = "weights.npz"
ONNX = "policy.onnx"


class Policy:
    """A loaded bundle. It obeys both scheduler protocols; `routes` and `resizes` say what it is for.

    Attributes:
        manifest: see there.
        name: what tables call it.
        sha256: of the manifest, which holds the hashes of all else: the bundle's identity.
    """

    def __init__(self, manifest: Manifest, sha256: str) -> None:
        self.manifest = manifest
        self.name = manifest.name
        self.sha256 = sha256

    @property
    def identity(self) -> str:
        """Tells this policy from every other, for sweeps that keep their runs."""
        return self.sha256

    @property
    def routes(self) -> bool:
        """It chooses machines for requests."""
        return self.manifest.action.kind != "pool_sizing"

    @property
    def resizes(self) -> bool:
        """It moves machines between pools."""
        return self.manifest.action.kind != "routing"

    def reset(self, view: ClusterView, seed: int) -> None:
        """Forget the last run. Of a joint policy, the engine calls this once for each role.

        Raises:
            ConfigError: the cluster has more machines than the policy knows.
        """
        raise NotImplementedError

    def route(self, view: ClusterView, request: RequestInfo) -> tuple[int, int]:
        """(prompt machine, token machine).

        Raises:
            PolicyError: its scores are not finite.
        """
        raise NotImplementedError

    def resize(self, view: ClusterView) -> int:
        """Machines to move from the token to the prompt pool; negative for the other way."""
        raise NotImplementedError

    def check(self, vector: dict[str, Any], view: ClusterView | None) -> None:
        """Replay one golden vector.

        Raises:
            PolicyError: another decision; says what was expected and what came.
        """
        raise NotImplementedError


class NetworkPolicy(Policy):
    """A network over observations.

    Args:
        runtime: what scores decisions.
        prior: weights of the scheduler whose costs observations hold; None for observations without.
    """

    def __init__(self, manifest: Manifest, sha256: str, runtime: Runtime, prior: Any = None) -> None:
        super().__init__(manifest, sha256)
        self.runtime = runtime
        action = manifest.action
        self._temperature = action.temperature
        self._sizes = SizingActions(action.max_moves, action.min_pool_machines)
        self.prior = prior_weights(prior)
        self._observer = Observer(action.max_machines or 1, self.prior)
        self._random = np.random.default_rng(0)

    def reset(self, view: ClusterView, seed: int) -> None:
        wanted = self.manifest.action.max_machines or len(view.machine_row)
        if wanted != self._observer.max_machines:
            self._observer = Observer(wanted, self.prior)
        self._observer.reset(view)
        self._random = np.random.default_rng(seed)

    def observe(self, view: ClusterView, request: RequestInfo | None) -> Observation:
        """What it sees; call it once a decision, see `Observer.observe`."""
        return self._observer.observe(view, request)

    def route(self, view: ClusterView, request: RequestInfo) -> tuple[int, int]:
        return self.route_observed(self.observe(view, request), view)

    def route_observed(self, observation: Observation, view: ClusterView) -> tuple[int, int]:
        """(prompt machine, token machine) for an observation of `view`."""
        prompt_allowed, token_allowed = view.prompt_allowed, view.token_allowed
        scores = self.runtime.pair_scores(observation)
        p, t = choose_pair(scores, prompt_allowed, token_allowed, self._temperature, self._random)
        if not (prompt_allowed[p] and token_allowed[t]):  # only where a phase has no machine at all
            p, t = next_allowed(prompt_allowed, p), next_allowed(token_allowed, t)
        return p, t

    def resize(self, view: ClusterView) -> int:
        scores = self.runtime.size_scores(self.observe(view, None))
        allowed = self._sizes.masks(view, None)
        number = choose(scores, allowed, self._temperature, self._random)
        return self._sizes.settle(view, number)[0]

    def check(self, vector: dict[str, Any], view: ClusterView | None) -> None:
        observation = as_observation(vector["observation"], prior=len(self.prior) > 0)
        scores = self.scores(vector["kind"], observation)
        expected = np.asarray(vector["scores"], np.float32).reshape(scores.shape)
        off = float(np.abs(scores - expected).max())
        if not off <= SCORE_TOLERANCE:
            raise PolicyError(f"its scores differ by {off:.3g} from those at export")
        decision: Any
        if vector["kind"] == "route":
            prompt, token = (
                np.asarray(vector[f"{phase}_allowed"], np.uint8) for phase in ("prompt", "token")
            )
            decision = list(choose_pair(scores, prompt, token))
        else:
            decision = choose(scores, np.asarray(vector["sizes_allowed"], np.uint8), 0.0, None)
        if decision != vector["decision"]:
            raise PolicyError(f"it decides {decision}, at export it was {vector['decision']}")

    def scores(self, kind: str, observation: Observation) -> Any:
        """(M, M) scores of pairs for `route`, (2K + 1,) of sizes for `resize`."""
        return (self.runtime.pair_scores if kind == "route" else self.runtime.size_scores)(observation)


class SchedulerPolicy(Policy):
    """Built-in schedulers by name.

    Args:
        arrays: options that are arrays, from `weights.npz`.
    """

    def __init__(self, manifest: Manifest, sha256: str, arrays: Weights) -> None:
        super().__init__(manifest, sha256)
        made = manifest.architecture
        assert isinstance(made, Heuristic)
        self.routing = self.sizing = None
        if made.routing is not None:
            self.routing = make_routing(made.routing, arrays)
        if made.sizing is not None:
            self.sizing = make_sizing(made.sizing, arrays)

    def reset(self, view: ClusterView, seed: int) -> None:
        for scheduler in (self.routing, self.sizing):
            if scheduler is not None:
                scheduler.reset(view, seed)

    def route(self, view: ClusterView, request: RequestInfo) -> tuple[int, int]:
        if self.routing is None:
            raise PolicyError(f"policy {self.name} resizes pools; it does not route")
        p, t = self.routing.route(view, request)
        return int(p), int(t)

    def resize(self, view: ClusterView) -> int:
        if self.sizing is None:
            raise PolicyError(f"policy {self.name} routes; it does not resize pools")
        return int(self.sizing.resize(view))

    def check(self, vector: dict[str, Any], view: ClusterView | None) -> None:
        assert view is not None
        fill_view(view, vector["view"])
        self.reset(view, 0)
        decision: Any
        if vector["kind"] == "route":
            decision = list(self.route(view, read_request(vector["request"])))
        elif "before" in vector:
            decision = after(self, view, vector["before"])
        else:
            decision = self.resize(view)
        if decision != vector["decision"]:
            raise PolicyError(f"it decides {decision}, at export it was {vector['decision']}")


def load(folder: str | Path) -> Policy:
    """Load a bundle: manifest, hashes, schema, weights, golden vectors. Nothing is unpickled or executed.

    Args:
        folder: of the bundle. See `locate` for `pretrained:NAME`.

    Raises:
        PolicyError: the first thing that is missing, changed or does not fit, in one sentence.
    """
    path = Path(folder)
    where = str(path / MANIFEST)
    text = _read(path, MANIFEST, MAX_MANIFEST_BYTES)
    manifest = parse_manifest(text, where)
    contents = {}
    for name, digest in manifest.files.items():
        content = _read(path, name, MAX_FILE_BYTES)
        found = hashlib.sha256(content).hexdigest()
        if found != digest:
            raise PolicyError(
                f"{path / name} has sha256 {found[:12]}, the manifest says {digest[:12]}: it was changed"
            )
        contents[name] = content
    try:
        policy = _build(manifest, hashlib.sha256(text).hexdigest(), contents)
    except SplitgymError as error:
        raise PolicyError(f"{path}: {error}") from None
    _replay(policy, path)
    return policy


def _build(manifest: Manifest, sha256: str, contents: dict[str, bytes]) -> Policy:
    made, action = manifest.architecture, manifest.action
    wanted = {Scorer: {WEIGHTS}, Mlp: {WEIGHTS}, Onnx: {ONNX}, Heuristic: set()}[type(made)]
    missing, extra = wanted - contents.keys(), contents.keys() - wanted - {WEIGHTS}
    if missing or extra:
        name = sorted(missing or extra)[0]
        raise PolicyError(
            f"architecture {made.kind} {'needs' if missing else 'has no use for'} the file {name}"
        )
    dtype = np.float64 if isinstance(made, Heuristic) else np.float32
    weights = _arrays(contents[WEIGHTS], np.dtype(dtype)) if WEIGHTS in contents else {}
    pairs, sizes = action.kind != "pool_sizing", 0 if action.kind == "routing" else 2 * action.max_moves + 1
    if isinstance(made, Heuristic):
        return SchedulerPolicy(manifest, sha256, weights)
    runtime: Runtime
    prior = None
    if has_prior(made):
        if not pairs or PRIOR not in weights:
            raise PolicyError(f"a {made.kind} with a prior routes, and {WEIGHTS} holds its flat vector")
        prior = weights.pop(PRIOR)
    if isinstance(made, Scorer):
        runtime = ScorerRuntime(weights, made.hidden, pairs, sizes, made.prior)
    elif isinstance(made, Mlp):
        if pairs and sizes:
            raise PolicyError("an mlp decides one thing; kind joint is not possible")
        machines = action.max_machines or 0
        outputs = machines * machines if pairs else sizes
        runtime = MlpRuntime(weights, made.inputs, made.layers, machines, outputs)
    else:
        runtime = OnnxRuntime(contents[ONNX], ("pair",) * pairs + ("size",) * bool(sizes), made.prior)
    return NetworkPolicy(manifest, sha256, runtime, prior)


def _replay(policy: Policy, path: Path) -> None:
    golden = policy.manifest.golden
    view = None
    if golden.reads == "view":
        try:
            cluster = from_mapping(ClusterConfig, golden.cluster, "golden.cluster")
            view = Cluster.resolve(cluster).view()
        except SplitgymError as error:
            raise PolicyError(f"{path}: the cluster of the golden vectors is no more: {error}") from None
    for number, vector in enumerate(golden.vectors):
        try:
            policy.check(vector, view)
        except SplitgymError as error:
            raise PolicyError(f"{path}: golden vector {number} fails: {error}") from None
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise PolicyError(f"{path}: golden vector {number} is malformed ({error!r})") from None


def _read(folder: Path, name: str, limit: int) -> bytes:
    """The bytes of a plain file in the bundle: hashed and parsed from one reading."""
    path = folder / name
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise PolicyError(f"{path} is no plain file (links are not followed)")
        if status.st_size > limit:
            raise PolicyError(f"{path} has {status.st_size} bytes, the limit is {limit}")
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise PolicyError(f"{path} cannot be read ({error.strerror})") from None
    if len(content) > limit:
        raise PolicyError(f"{path} has more than {limit} bytes")
    return content


def _arrays(content: bytes, dtype: np.dtype[Any]) -> Weights:
    """Arrays of an npz, all of one type; its unpacked size is bounded before anything is unpacked."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            unpacked = sum(item.file_size for item in archive.infolist())
        if unpacked > MAX_FILE_BYTES:
            raise PolicyError(f"{WEIGHTS} unpacks to {unpacked} bytes, the limit is {MAX_FILE_BYTES}")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except PolicyError:
        raise
    except Exception as error:  # zipfile and NumPy raise many kinds on a broken file
        raise PolicyError(f"{WEIGHTS} cannot be read ({error})") from None
    for name, array in found.items():
        if array.dtype != dtype:
            raise PolicyError(f"{WEIGHTS}: {name} has type {array.dtype}, expected {dtype}")
        if not np.isfinite(array).all():
            raise PolicyError(f"{WEIGHTS}: {name} holds a number that is not finite")
    return found
