"""Write a bundle: files, hashes, manifest; then load it, so that no bundle leaves that would be refused."""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from splitgym.config import SloConfig, to_mapping
from splitgym.errors import PolicyError
from splitgym.observation import schema, schema_hash
from splitgym.policy.bundle import ONNX, WEIGHTS, load
from splitgym.policy.manifest import (
    FORMAT,
    MANIFEST,
    Action,
    Golden,
    Heuristic,
    Manifest,
    Observed,
    Partner,
    has_prior,
)
from splitgym.policy.policies import Policy
from splitgym.policy.runtimes import Weights


def write_bundle(
    folder: str | Path,
    *,
    name: str,
    architecture: Any,
    action: Action,
    golden: Golden,
    weights: Weights | None = None,
    onnx: bytes | None = None,
    partner: Partner = Partner(),
    slo: SloConfig = SloConfig(),
    training: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> Policy:
    """Write a bundle into a new folder and load it.

    Args:
        folder: must not exist, or be empty.
        name: what tables call the policy.
        architecture: `Scorer`, `Mlp`, `Onnx` or `Heuristic` of `splitgym.policy.manifest`.
        action, golden, partner, slo, training, metrics: see `Manifest`.
        weights: arrays by name; saved as float32, those of schedulers as float64.
        onnx: a model for onnxruntime.

    Raises:
        PolicyError: the folder is taken, or what was written is refused by `load`.
    """
    files = {}
    if weights is not None:
        packed = io.BytesIO()
        dtype = np.float64 if isinstance(architecture, Heuristic) else np.float32
        arrays = {key: np.ascontiguousarray(array, dtype) for key, array in weights.items()}
        np.savez(packed, **arrays)  # type: ignore[arg-type]
        files[WEIGHTS] = packed.getvalue()
    if onnx is not None:
        files[ONNX] = onnx
    prior = has_prior(architecture)
    manifest = Manifest(
        format=FORMAT,
        name=name,
        architecture=architecture,
        action=action,
        observation=Observed(sha256=schema_hash(prior), layout=schema(prior)),
        golden=golden,
        partner=partner,
        slo=slo,
        training=dict(training or {}),
        metrics=dict(metrics or {}),
        files={key: hashlib.sha256(content).hexdigest() for key, content in files.items()},
    )
    files[MANIFEST] = _text(manifest).encode()
    target = Path(folder)
    check_free(target)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        for key, content in files.items():
            (temporary / key).write_bytes(content)
        load(temporary)
        if target.is_dir():
            target.rmdir()
        temporary.replace(target)
    except OSError as error:
        raise PolicyError(f"{target} cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return load(target)


def check_free(folder: Path) -> None:
    """Refuse a place where something lies already.

    Raises:
        PolicyError: it is a file, or a folder that is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PolicyError(f"{folder} exists already: name a new folder for the bundle")


def _text(manifest: Manifest) -> str:
    """JSON with a line for each golden vector, so that people can read the rest."""
    data = to_mapping(manifest)
    vectors: Sequence[Any] = data["golden"].pop("vectors")
    text = json.dumps(data, indent=1, allow_nan=False)
    lines = ",\n   ".join(json.dumps(vector, allow_nan=False) for vector in vectors)
    head, mark, tail = text.partition('"golden": {')
    return f'{head}{mark}\n  "vectors": [\n   {lines}\n  ],{tail}\n'
