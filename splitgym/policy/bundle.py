"""Load a bundle and check all of it."""

import hashlib
import io
import stat
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from splitgym.cluster import Cluster
from splitgym.config import ClusterConfig, from_mapping
from splitgym.errors import PolicyError, SplitgymError
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
from splitgym.policy.policies import NetworkPolicy, Policy, SchedulerPolicy
from splitgym.policy.runtimes import (
    PRIOR,
    MlpRuntime,
    OnnxRuntime,
    Runtime,
    ScorerRuntime,
    Weights,
)

WEIGHTS = "weights.npz"
ONNX = "policy.onnx"


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
