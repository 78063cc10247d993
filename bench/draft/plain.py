"""The same drafter and loss in the idiom of plain PyTorch, as training scripts write them.

Separate projections, a rotary embedding by halves, attention as one causal product and a row-wise
dot product per later step (EAGLE-3's own code does that), the logits of all rows, and the cross
entropy with the teacher's probabilities, which are computed once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leeboard.draft import Batch, DrafterConfig


class PlainDrafter(nn.Module):
    """A post-norm or pre-norm EAGLE-3 drafter; it loads the state of an `Eagle3Drafter`."""

    cos: Tensor
    sin: Tensor
    t2d: Tensor

    def __init__(self, config: DrafterConfig, rows: int) -> None:
        super().__init__()
        self.config = config
        h, eps, d = config.hidden_size, config.rms_norm_eps, config.head_dim
        heads, kv = config.num_attention_heads, config.num_key_value_heads
        wide = config.target_hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, h)
        if config.fc_norm:
            self.fc_norm = nn.ModuleList(nn.RMSNorm(wide, eps) for _ in range(3))
        self.fc = nn.Linear(3 * wide, h, bias=False)
        layer = self.midlayer = nn.Module()
        for name in ("input_layernorm", "hidden_norm", "post_attention_layernorm"):
            setattr(layer, name, nn.RMSNorm(h, eps))
        attention = layer.self_attn = nn.Module()
        for name, out in (("q_proj", heads * d), ("k_proj", kv * d), ("v_proj", kv * d)):
            setattr(attention, name, nn.Linear(2 * h, out, bias=False))
        attention.o_proj = nn.Linear(heads * d, h, bias=False)
        mlp = layer.mlp = nn.Module()
        mlp.gate_proj = nn.Linear(h, config.intermediate_size, bias=False)
        mlp.up_proj = nn.Linear(h, config.intermediate_size, bias=False)
        mlp.down_proj = nn.Linear(config.intermediate_size, h, bias=False)
        self.norm = nn.RMSNorm(h, eps)
        self.lm_head = nn.Linear(h, config.draft_vocab_size, bias=False)
        self.register_buffer("d2t", torch.zeros(config.draft_vocab_size, dtype=torch.int64))
        self.register_buffer("t2d", torch.zeros(config.vocab_size, dtype=torch.bool))
        rates = config.rope_theta ** -(torch.arange(0, d, 2) / d)
        angles = torch.outer(torch.arange(rows + 16).float(), rates)
        angles = torch.cat((angles, angles), dim=-1)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.register_buffer(
            "hidden_keys", torch.ones(rows, rows, dtype=torch.bool).triu(1), persistent=False
        )

    def forward(self, input_ids: Tensor, hiddens: Sequence[Tensor], steps: int) -> list[Tensor]:
        """What the head sees of every step, each [B, T, H]."""
        if self.config.fc_norm:
            hiddens = [norm(h) for norm, h in zip(self.fc_norm, hiddens, strict=True)]
        state = self.fc(torch.cat(list(hiddens), dim=-1))
        layer, attention, mlp = self.midlayer, self.midlayer.self_attn, self.midlayer.mlp
        keys: list[Tensor] = []
        values: list[Tensor] = []
        out = []
        for j in range(steps):
            input_ids = F.pad(input_ids[:, 1:], (0, 1))
            embedded = layer.input_layernorm(self.embed_tokens(input_ids))
            x = torch.cat((embedded, layer.hidden_norm(state)), dim=-1)
            q, k, v = (
                self._heads(p(x)) for p in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            q, k = self._rotate(q, j), self._rotate(k, j)
            groups = q.shape[1] // k.shape[1]
            if groups > 1:
                k, v = (t.repeat_interleave(groups, dim=1) for t in (k, v))
            keys.append(k)
            values.append(v)
            r = state + attention.o_proj(self._attend(q, keys, values).transpose(1, 2).flatten(2))
            n = layer.post_attention_layernorm(r)
            x = r + mlp.down_proj(F.silu(mlp.gate_proj(n)) * mlp.up_proj(n))
            hidden = self.norm(x)
            state = hidden if self.config.norm_output else x
            out.append(hidden)
        return out

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], -1, self.config.head_dim).transpose(1, 2)

    def _rotate(self, x: Tensor, ahead: int) -> Tensor:
        rows = slice(ahead, ahead + x.shape[2])
        low, high = x.chunk(2, dim=-1)
        return x * self.cos[rows] + torch.cat((-high, low), dim=-1) * self.sin[rows]

    def _attend(self, q: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
        if len(keys) == 1:
            return F.scaled_dot_product_attention(q, keys[0], values[0], is_causal=True)
        rows = q.shape[2]
        q = q * self.config.head_dim**-0.5
        scores = (q @ keys[0].transpose(-1, -2)).masked_fill(self.hidden_keys, float("-inf"))
        own = [(q * k).sum(-1, keepdim=True) for k in keys[1:]]
        weights = torch.cat((scores, *own), dim=-1).softmax(-1)
        out = weights[..., :rows] @ values[0]
        for i, v in enumerate(values[1:], start=rows):
            out = out + weights[..., i : i + 1] * v
        return out


def plain_loss(
    drafter: PlainDrafter,
    batch: Batch,
    teacher_weight: Tensor,
    step_weights: Sequence[float],
) -> tuple[Tensor, Tensor]:
    """(loss, accuracies [S]); the loss lacks the teacher's entropy, which has no gradient."""
    with torch.no_grad():
        scores = F.linear(batch.final, teacher_weight)
        teacher, best = scores.softmax(-1), scores.argmax(-1)
        taught = drafter.t2d[batch.best]
    loss = torch.zeros(())
    accuracies = []
    steps = len(step_weights)
    for j, hidden in enumerate(drafter(batch.ids, batch.hiddens, steps)):
        rows, ahead = slice(0, -2 - j), slice(1 + j, -1)
        marked = batch.loss_mask[:, 2 + j :]
        valid = marked & taught[:, ahead]
        logits = drafter.lm_head(hidden[:, rows])
        cross = -(teacher[:, ahead] * logits.log_softmax(-1)).sum(-1)
        loss = loss + step_weights[j] * (cross * valid).sum() / valid.sum().clamp(min=1)
        with torch.no_grad():
            hits = (logits.argmax(-1) == best[:, ahead]) & valid
            accuracies.append(hits.sum() / marked.sum().clamp(min=1))
    return loss, torch.stack(accuracies)
