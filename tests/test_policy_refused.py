"""Bundles that were changed are refused with one sentence; nothing in them is executed."""

import io
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from splitgym import policy
from splitgym.errors import PolicyError
from splitgym.policy.choose import choose, choose_pair
from tests.bundles import edit, packed, replace_file, scorer_bundle, weights_of


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return scorer_bundle(tmp_path_factory.mktemp("bundles") / "original")


@pytest.fixture
def bundle(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "copy"))


EDITS = {
    "format 2, this splitgym reads format 1": lambda d: d.update(format=2),
    "observation schema": lambda d: d["observation"].update(sha256="0" * 64),
    "is no known key|unexpected": lambda d: d.update(surprise=1),
    "file name '../weights.npz' is not allowed": lambda d: d["files"].update({"../weights.npz": "0" * 64}),
    "file name '/etc/passwd' is not allowed": lambda d: d["files"].update({"/etc/passwd": "0" * 64}),
    "file name 'manifest.json' is not allowed": lambda d: d["files"].update({"manifest.json": "0" * 64}),
    "is no sha256": lambda d: d["files"].update({"weights.npz": "abc"}),
    "needs the file weights.npz": lambda d: d["files"].clear(),
    "it decides": lambda d: d["golden"]["vectors"][1].update(decision=[0, 0], prompt_allowed=[0, 0, 1, 1]),
    "scores differ": lambda d: d["golden"]["vectors"][2]["scores"].__setitem__(0, 9.0),
    "no golden vectors": lambda d: d["golden"].update(vectors=[]),
    "golden vector 0 is malformed": lambda d: d["golden"]["vectors"][0].pop("scores"),
    "machines has shape": lambda d: d["golden"]["vectors"][0]["observation"]["machines"].pop(),
    "encoder.own.weight has shape": lambda d: d["architecture"].update(hidden=9),
    "lacks sizes.0.weight": lambda d: d["action"].update(kind="joint"),
    "architecture": lambda d: d.update(architecture={"kind": "pickle"}),
    "read a view, a scorer reads": lambda d: d["golden"].update(reads="view"),
    "limit is 8": lambda d: d["files"].update({f"f{i}": "0" * 64 for i in range(9)}),
}


@pytest.mark.parametrize("message", EDITS)
def test_a_changed_manifest_is_refused(bundle, message):
    edit(bundle, EDITS[message])
    with pytest.raises(PolicyError, match=message) as refused:
        policy.load(bundle)
    assert "\n" not in str(refused.value) and str(bundle) in str(refused.value)


def test_a_changed_file_is_refused(bundle):
    content = bytearray((bundle / "weights.npz").read_bytes())
    content[200] ^= 1
    (bundle / "weights.npz").write_bytes(bytes(content))
    with pytest.raises(PolicyError, match=r"weights\.npz has sha256 .* it was changed"):
        policy.load(bundle)


def test_other_weights_fail_the_golden_vectors(bundle):
    weights = weights_of(bundle)
    weights["machine.bias"] = weights["machine.bias"] + 0.5
    replace_file(bundle, "weights.npz", packed(weights))
    with pytest.raises(PolicyError, match=r"golden vector . fails: its scores differ"):
        policy.load(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w | {"extra": np.zeros(1, np.float32)}, "holds extra"),
        (lambda w: w | {"machine.bias": w["machine.bias"].astype(np.float64)}, "has type float64"),
        (lambda w: w | {"machine.bias": w["machine.bias"] * np.nan}, "not finite"),
        (lambda w: {k: v for k, v in w.items() if k != "machine.bias"}, "lacks machine.bias"),
    ],
)
def test_wrong_arrays_are_refused(bundle, change, message):
    replace_file(bundle, "weights.npz", packed(change(weights_of(bundle))))
    with pytest.raises(PolicyError, match=message):
        policy.load(bundle)


def test_no_pickle_is_read(bundle):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    arrays = {**weights_of(bundle), "machine.bias": np.array([Bomb()], object)}
    replace_file(bundle, "weights.npz", packed(arrays))
    with pytest.raises(PolicyError, match="cannot be read"):
        policy.load(bundle)


def test_a_zip_bomb_is_not_unpacked(bundle):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as file:
        for _ in range(300):
            file.write(bytes(1 << 20))
    replace_file(bundle, "weights.npz", made.getvalue())
    with pytest.raises(PolicyError, match="unpacks to"):
        policy.load(bundle)


def test_links_and_other_folders_are_refused(bundle, tmp_path):
    secret = tmp_path / "elsewhere.npz"
    secret.write_bytes((bundle / "weights.npz").read_bytes())
    (bundle / "weights.npz").unlink()
    (bundle / "weights.npz").symlink_to(secret)
    with pytest.raises(PolicyError, match="no plain file"):
        policy.load(bundle)
    (bundle / "weights.npz").unlink()
    with pytest.raises(PolicyError, match="cannot be read"):
        policy.load(bundle)
    with pytest.raises(PolicyError, match=r"manifest\.json cannot be read"):
        policy.load(tmp_path)
    (bundle / "manifest.json").write_text('{"format": NaN}')
    with pytest.raises(PolicyError, match="NaN is not allowed"):
        policy.load(bundle)
    (bundle / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(PolicyError, match="no JSON"):
        policy.load(bundle)


def test_a_heuristic_that_decides_otherwise_is_refused(tmp_path):
    policy.export_heuristic("splitwise", tmp_path / "b")
    edit(tmp_path / "b", lambda d: d["architecture"]["routing"].update(name="random"))
    with pytest.raises(PolicyError, match=r"golden vector . fails: it decides"):
        policy.load(tmp_path / "b")
    edit(tmp_path / "b", lambda d: d["architecture"]["routing"].update(name="gone"))
    with pytest.raises(PolicyError, match="no routing scheduler is called 'gone'"):
        policy.load(tmp_path / "b")


def test_scores_that_are_not_finite_are_an_error():
    scores = np.zeros((2, 2), np.float32)
    scores[1, 1] = np.nan
    with pytest.raises(PolicyError, match="not finite"):
        choose(scores, np.ones((2, 2)), 0.0, None)
    assert choose_pair(scores, np.array([1, 0]), np.array([0, 1])) == (0, 1), "masked ones do not count"


def test_draws_follow_the_softmax():
    random = np.random.default_rng(0)
    scores = np.log(np.array([1.0, 2.0, 4.0, 8.0], np.float32))
    allowed = np.array([1, 1, 0, 1])
    drawn = np.bincount([choose(scores, allowed, 1.0, random) for _ in range(4000)], minlength=4)
    assert np.allclose(drawn / 4000, np.array([1, 2, 0, 8]) / 11, atol=0.03)
    drawn = np.bincount([choose(scores, allowed, 0.5, random) for _ in range(4000)], minlength=4)
    assert np.allclose(drawn / 4000, np.array([1, 4, 0, 64]) / 69, atol=0.03)


def test_a_failed_export_leaves_nothing(tmp_path):
    from splitgym.policy.manifest import Action, Golden, Scorer

    with pytest.raises(PolicyError):
        policy.write_bundle(
            tmp_path / "b",
            name="x",
            architecture=Scorer("scorer", 8),
            action=Action("routing"),
            golden=Golden("observation", ({"kind": "route"},)),
            weights={},
        )
    assert list(tmp_path.iterdir()) == []
