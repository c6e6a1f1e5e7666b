"""A dense decoder-only transformer with random weights, to be timed: Llama's layer, one iteration at a time.

An iteration is what an engine's is: prompts and decodes together, one matrix product for all their tokens,
attention apart for each prompt and for all decodes. It is plain PyTorch and not vLLM: no paged cache, no
fused kernels beyond PyTorch's own, no scheduler around it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from splitgym.profile.dense import Dimensions


class Layer(nn.Module):
    """Attention with grouped keys and values, and a gated MLP; both after an RMS norm."""

    def __init__(self, shape: Dimensions) -> None:
        super().__init__()
        self.shape = shape
        heads, width = shape.heads + 2 * shape.kv_heads, shape.head_dim
        self.before = nn.RMSNorm(shape.hidden)
        self.after = nn.RMSNorm(shape.hidden)
        self.qkv = nn.Linear(shape.hidden, heads * width, bias=False)
        self.out = nn.Linear(shape.heads * width, shape.hidden, bias=False)
        self.gate_up = nn.Linear(shape.hidden, 2 * shape.intermediate, bias=False)
        self.down = nn.Linear(shape.intermediate, shape.hidden, bias=False)

    def forward(self, x: Tensor, prompts: list[int], cache: Tensor | None, turn: Tensor) -> Tensor:
        """(tokens, hidden) after the layer.

        Args:
            x: (tokens, hidden), prompts first, one token a decode after them.
            prompts: tokens of each prompt.
            cache: (2, decodes, kv_heads, context, head_dim) keys and values of the decodes; None without.
            turn: (tokens, head_dim) angles of the rotary embedding.
        """
        shape = self.shape
        q, k, v = self._heads(self.qkv(self.before(x)), turn)
        parts, start = [], 0
        for tokens in prompts:
            piece = slice(start, start + tokens)
            parts.append(self._attend(q[None, :, piece], k[None, :, piece], v[None, :, piece], causal=True))
            start += tokens
        if cache is not None:
            # The newest token's place is the last of the context.
            cache[0, :, :, -1] = k[:, start:].transpose(0, 1)
            cache[1, :, :, -1] = v[:, start:].transpose(0, 1)
            mine = q[:, start:].transpose(0, 1)[:, :, None]
            parts.append(self._attend(mine, cache[0], cache[1], causal=False))
        attended = torch.cat(parts) if len(parts) > 1 else parts[0]
        x = x + self.out(attended)
        gate, up = self.gate_up(self.after(x)).split(shape.intermediate, -1)
        return x + self.down(functional.silu(gate) * up)

    def _heads(self, qkv: Tensor, turn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Three of (heads, tokens, head_dim); queries and keys turned."""
        shape = self.shape
        split = qkv.view(len(qkv), -1, shape.head_dim).transpose(0, 1)
        q, k, v = split.split((shape.heads, shape.kv_heads, shape.kv_heads))
        return _turned(q, turn), _turned(k, turn), v

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
        """(tokens, heads x head_dim) of (batch, heads, tokens, head_dim)."""
        grouped = self.shape.heads != self.shape.kv_heads
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=grouped)
        return out.transpose(1, 2).reshape(-1, self.shape.heads * self.shape.head_dim)


class Transformer(nn.Module):
    """The whole model. Weights are random: times do not depend on them.

    Args:
        shape: its dimensions.
        device, dtype: where, and of what.
    """

    def __init__(self, shape: Dimensions, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.shape, self.device, self.dtype = shape, device, dtype
        with torch.device("meta"):
            self.embedding = nn.Embedding(shape.vocabulary, shape.hidden)
            self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
            self.norm = nn.RMSNorm(shape.hidden)
            self.head = nn.Linear(shape.hidden, shape.vocabulary, bias=False)
        # Of the right type before there is any memory: a large model has no room for two.
        self.to(dtype)
        self.to_empty(device=device)
        if shape.tied:
            self.head.weight = self.embedding.weight
        for weights in self.parameters():
            nn.init.normal_(weights, std=0.02)

    def cache(self, decodes: int, context: int) -> list[Tensor]:
        """Keys and values of each layer for so many decodes, filled."""
        size = (2, decodes, self.shape.kv_heads, context, self.shape.head_dim)
        return [torch.randn(size, device=self.device, dtype=self.dtype) for _ in self.layers]

    def layout(self, prompts: list[int], decodes: int, context: int) -> "Layout":
        """An iteration of some prompts, and of decodes that have so much context each."""
        places = [torch.arange(n) for n in prompts]
        places.append(torch.full((decodes,), max(0, context - 1)))
        half = self.shape.head_dim // 2
        speed = 1e4 ** (-torch.arange(half) / half)
        angles = torch.cat(places)[:, None] * speed
        turn = torch.cat([angles.cos(), angles.sin()], -1).to(self.device, self.dtype)
        ends = torch.tensor(prompts, dtype=torch.int64).cumsum(0) - 1
        last = torch.cat([ends, sum(prompts) + torch.arange(decodes)]).to(self.device)
        return Layout(prompts, turn, last, self.cache(decodes, context) if decodes else None)

    @torch.inference_mode()
    def iteration(self, tokens: Tensor, layout: "Layout") -> Tensor:
        """The next token of each prompt and each decode.

        Args:
            tokens: (tokens,) ids: prompts one after the other, then the last token of each decode.
            layout: what they are.
        """
        x = self.embedding(tokens)
        for number, layer in enumerate(self.layers):
            cache = layout.caches[number] if layout.caches is not None else None
            x = layer(x, layout.prompts, cache, layout.turn)
        return self.head(self.norm(x[layout.last])).argmax(-1)


@dataclass(frozen=True)
class Layout:
    """What an iteration is made of; on the device before the clock starts, so that it can be recorded."""

    prompts: list[int]
    turn: Tensor  # (tokens, head_dim) cosines and sines of the rotary embedding
    last: Tensor  # (prompts + decodes,) the places whose next token is wanted
    caches: list[Tensor] | None


def _turned(x: Tensor, turn: Tensor) -> Tensor:
    cos, sin = turn.chunk(2, -1)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
