"""Timing a transformer in PyTorch: the arithmetic is a transformer's, the file a profile. On the CPU."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from agents import torch_profile
from agents.torch_model import Transformer
from splitgym import profile as profiles
from splitgym.errors import ProfileError
from splitgym.measuring.plan import Limits
from splitgym.profile.dense import PRESETS, Dimensions, from_config
from tests.test_cli import run as run_bare

TINY = Dimensions("tiny", 2, 32, 4, 2, 8, 64, 100, bytes_per_value=4)


def test_a_decode_continues_what_a_prompt_computed() -> None:
    """The same next token, whether a text is computed at once or its last token over a cache of the rest."""
    torch.manual_seed(0)
    model = Transformer(TINY, torch.device("cpu"), torch.float32)
    text = torch.randint(100, (12,))
    whole = model.layout([12], 0, 0)
    states: list[torch.Tensor] = []
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda _, args: states.append(args[0]))
    wanted = model.iteration(text, whole)
    step = model.layout([], 1, 12)
    assert step.caches is not None
    with torch.inference_mode():
        for layer, x, cache in zip(model.layers, states, step.caches):
            _, k, v = layer._heads(layer.qkv(layer.before(x)), whole.turn)  # type: ignore[operator]
            cache[0, 0, :, :11], cache[1, 0, :, :11] = k[:, :11], v[:, :11]
    assert model.iteration(text[-1:], step).tolist() == wanted.tolist()
    mixed = model.layout([12, 5], 1, 12)
    for ours, theirs in zip(mixed.caches or [], step.caches):
        ours.copy_(theirs)
    together = model.iteration(torch.cat([text, text[:5], text[-1:]]), mixed).tolist()
    assert together[0] == together[2] == wanted.item() and len(together) == 3


def test_presets_have_the_published_sizes() -> None:
    assert PRESETS["llama-3.1-8b"].parameters == 8_030_261_248
    assert PRESETS["qwen2.5-32b"].parameters == pytest.approx(32.76e9, rel=1e-3)
    assert PRESETS["llama-3.1-8b"].spec.kv_bytes_per_token == 131_072
    model = Transformer(TINY, torch.device("cpu"), torch.float32)
    assert sum(weights.numel() for weights in model.parameters()) == TINY.parameters
    tied = Transformer(replace(TINY, tied=True), torch.device("cpu"), torch.float32)
    assert sum(weights.numel() for weights in tied.parameters()) == replace(TINY, tied=True).parameters


def test_a_config_of_hugging_face(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    fields = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    fields |= {"intermediate_size": 64, "vocab_size": 100}
    path.write_text(json.dumps({**fields, "torch_dtype": "float32"}))
    assert replace(from_config(path, "tiny"), source="") == TINY
    path.write_text(json.dumps({**fields, "num_local_experts": 8}))
    with pytest.raises(ProfileError, match="a mixture of experts"):
        from_config(path)
    path.write_text(json.dumps({"hidden_size": 32}))
    with pytest.raises(ProfileError, match=r"config\.json: lacks num_attention_heads"):
        from_config(path)


def test_longer_and_larger_takes_longer() -> None:
    torch.set_num_threads(1)
    device = torch_profile.Device.find("cpu")
    shape = torch_profile.shape_on(replace(TINY, hidden=64, intermediate=256), device)
    limits = Limits(repeats=2, max_prompt=512, max_batch=4)
    samples, stopped = torch_profile.measure(shape, device, torch_profile.plan_for(shape, device, limits))
    assert stopped == "" and {point for point, _ in samples.prompt} >= {(16, 1), (512, 1), (512, 2)}
    data, fitted = torch_profile.profile_content(shape, device, samples, name="here")
    assert fitted.prompt_seconds(512) > 1.5 * fitted.prompt_seconds(16)
    said = data["provenance"]
    assert (
        "not with vLLM" in said["kind"] and torch.__version__ in said["versions"] and said["date"] >= "2026"
    )
    assert "no GPU" in said["method"] and "CPU" in said["device"]
    late = replace(limits, seconds=1e-9)
    assert (
        torch_profile.measure(shape, device, torch_profile.plan_for(shape, device, late))[1]
        == "1e-09 s are over"
    )


def test_devices_that_are_not_there() -> None:
    with pytest.raises(ProfileError, match="dtype int8: choose one of float32"):
        torch_profile.Device.find("cpu", "int8")
    if not torch.cuda.is_available():
        with pytest.raises(ProfileError, match="device cuda: PyTorch sees only the CPU"):
            torch_profile.Device.find("cuda")
    small = replace(torch_profile.Device.find("cpu"), memory_bytes=1_000)
    with pytest.raises(ProfileError, match=r"tiny: its weights are .*fewer --layers"):
        torch_profile.shape_on(TINY, small)


SHAPE = ["--layers", "1", "--hidden", "16", "--heads", "2", "--kv-heads", "1", "--head-dim", "8"]
SHAPE += ["--intermediate", "32", "--vocab", "64", "--device", "cpu", "--repeats", "2"]
SHAPE += ["--max-prompt", "64", "--max-batch", "2"]


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from splitgym import cli
    from splitgym.cli.learning import add_learning_commands

    def run(*words: str) -> int:
        return run_bare(monkeypatch, "profile", "torch", *words)

    monkeypatch.setattr(cli.app, "registered_commands", [*cli.app.registered_commands])
    monkeypatch.setattr(cli.profile_app, "registered_commands", [*cli.profile_app.registered_commands])
    add_learning_commands(cli.app)
    out = tmp_path / "p.json"
    words = [*SHAPE, "--model", "mini", "--out", str(out)]
    assert run(*words, "--dry-run") == 0
    assert "prompt time" in capsys.readouterr().out and not out.exists()
    assert run(*words) == 0
    said = capsys.readouterr().out
    assert "not vLLM" in said and f"--model mini --cluster {out}/tp1:1P1T" in said
    made = profiles.load_file(out)
    assert made.model.name == "mini" and made.model.layers == 1 and made.kv_bytes_per_token == 64
    assert run(*words) == 2 and "--force" in capsys.readouterr().err
    assert run(*words, "--force", "--max-seconds", "0.000001") == 2
    assert "nothing was written" in capsys.readouterr().err and profiles.load_file(out) == made
    assert run("--shape", "gpt-5") == 2 and "llama-3.1-8b" in capsys.readouterr().err


def test_without_the_checkout_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from splitgym import cli
    from splitgym.cli import learning

    monkeypatch.setattr(cli.app, "registered_commands", [*cli.app.registered_commands])
    monkeypatch.setattr(cli.profile_app, "registered_commands", [*cli.profile_app.registered_commands])
    monkeypatch.setattr(learning, "learning_commands", lambda: "needs torch: pip install it")
    learning.add_learning_commands(cli.app)
    assert run_bare(monkeypatch, "profile", "torch", "--shape", "llama-3.1-8b") == 2
    assert "`splitgym profile torch` needs torch: pip install it" in capsys.readouterr().err
