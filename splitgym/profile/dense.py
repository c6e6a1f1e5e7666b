"""Dense decoder-only transformers by their dimensions: from Hugging Face's config.json, and known ones."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitgym.errors import ProfileError
from splitgym.profile.specs import ModelSpec, read_mapping

_DTYPES = {"float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1}


@dataclass(frozen=True)
class Dimensions:
    """A transformer with a gated MLP of three matrices, as Llama and Qwen have it."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool = False
    """The output matrix is the embedding."""
    bytes_per_value: int = 2
    source: str = ""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                raise ProfileError(f"{self.name}: {name} is {value}, expected at least 1")
        if self.heads % self.kv_heads:
            raise ProfileError(f"{self.name}: kv_heads {self.kv_heads} must divide heads {self.heads}")

    @property
    def parameters(self) -> int:
        """Weights, norms included."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        layer = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden
        tables = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.layers * layer + tables + self.hidden

    @property
    def spec(self) -> ModelSpec:
        """For a profile."""
        return ModelSpec(
            name=self.name,
            layers=self.layers,
            hidden=self.hidden,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            weights_bytes=self.parameters * self.bytes_per_value,
            bytes_per_value=self.bytes_per_value,
            source=self.source,
        )


PRESETS = {
    found.name: found
    for found in (
        Dimensions(
            "llama-3.1-8b",
            32,
            4096,
            32,
            8,
            128,
            14336,
            128256,
            source="Llama 3.1 8B, config.json",
        ),
        Dimensions(
            "qwen2.5-32b",
            64,
            5120,
            40,
            8,
            128,
            27648,
            152064,
            source="Qwen2.5 32B, config.json",
        ),
    )
}
"""Shapes by name; weights are random wherever these are used."""


def from_config(path: str | Path, name: str = "") -> Dimensions:
    """The dimensions in a Hugging Face `config.json`, or in the folder that holds one.

    Raises:
        ProfileError: no such file, a field that is missing, or a model that is not dense.
    """
    path = Path(path)
    path = path / "config.json" if path.is_dir() else path
    data: dict[str, Any] = read_mapping(path)
    if data.get("num_local_experts") or data.get("num_experts") or data.get("n_routed_experts"):
        raise ProfileError(f"{path}: a mixture of experts: profiles are of dense transformers")

    def number(*keys: str, default: int | None = None) -> int:
        for key in keys:
            value = data.get(key)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
        if default is None:
            raise ProfileError(f"{path}: lacks {keys[0]}: expected a Hugging Face config of a transformer")
        return default

    hidden, heads = number("hidden_size", "n_embd"), number("num_attention_heads", "n_head")
    return Dimensions(
        name=name or path.resolve().parent.name,
        layers=number("num_hidden_layers", "n_layer"),
        hidden=hidden,
        heads=heads,
        kv_heads=number("num_key_value_heads", default=heads),
        head_dim=number("head_dim", default=hidden // heads),
        intermediate=number("intermediate_size", default=4 * hidden),
        vocabulary=number("vocab_size"),
        tied=bool(data.get("tie_word_embeddings", False)),
        bytes_per_value=_DTYPES.get(str(data.get("torch_dtype") or data.get("dtype")), 2),
        source=f"{path.name} of {name or path.resolve().parent.name}; parameters counted from its dimensions",
    )
