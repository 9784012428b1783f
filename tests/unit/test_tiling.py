"""MLPs in tiles of the sequence: the same numbers, less memory, and refusal where an MLP is not token by token."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from transformers import AutoModelForCausalLM, Qwen2Config

from tests.architectures import VOCABULARY, tiny_config
from toolkit.errors import ModelError
from toolkit.models.tiling import check_tiles, tile_mlps

KINDS = (
    "llama",
    "gpt2",
    "gemma3",
    "bloom",
    "mpt",
    "mixtral",
    "granitemoe",
    "falcon",
    "lfm2",
    "deepseek_v4",
)
"""Plain and gated MLPs, experts, a residual as second argument, token ids as second argument, hidden layers of other kinds."""

EXPERTS = ("mixtral", "granitemoe", "deepseek_v4")


def build(kind: str) -> nn.Module:
    torch.manual_seed(0)
    # In float64 rounding is far below the tolerance, also where gradients nearly cancel (DeepSeek V4's residual streams);
    # only eager experts compute in it.
    options = {"dtype": torch.float64, **({"experts_implementation": "eager"} if kind in EXPERTS else {})}
    model: nn.Module = AutoModelForCausalLM.from_config(tiny_config(kind), **options).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def gradients(model: nn.Module) -> tuple[float, dict[str, torch.Tensor]]:
    """Of a sum over the logits of two rows of 13 tokens."""
    tokens = torch.randint(3, VOCABULARY, (2, 13), generator=torch.Generator().manual_seed(1))
    loss = model(input_ids=tokens, use_cache=False).logits.double().logsumexp(-1).sum()
    loss.backward()
    return float(loss.detach()), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
def test_tiles_change_nothing(kind: str) -> None:
    """Uneven tiles, more tiles than tokens, tiles inside recomputed layers: loss and gradients within 1e-5, relative."""
    plain = build(kind)
    wanted_loss, wanted = gradients(copy.deepcopy(plain))
    floor = 1e-3 * float(torch.nn.utils.get_total_norm(list(wanted.values())))
    for number, recompute in ((3, False), (20, False), (4, True)):
        model = copy.deepcopy(plain)
        tiles = tile_mlps(model, number)
        if recompute:
            model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        with torch.no_grad():
            check_tiles(tiles.excess(model.eval()), kind)
        loss, found = gradients(model.train())
        assert loss == pytest.approx(wanted_loss, rel=1e-6)
        assert found.keys() == wanted.keys()
        worst = {name: float((found[name] - g).norm()) / (float(g.norm()) + floor) for name, g in wanted.items()}
        assert max(worst.values()) < 1e-5, (number, worst)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("opt", "OPTForCausalLM has no layer with a part called mlp"),
        ("bert", "BertLMHeadModel has no layer with a part called mlp"),
        ("rwkv", "RwkvFeedForward returns tuple, not one tensor"),
        ("llama4_text", "Llama4TextMoe returns tuple, not one tensor"),
    ],
)
def test_architectures_without_an_mlp_to_tile(kind: str, reason: str) -> None:
    model = build(kind)
    with pytest.raises(ModelError) as caught, torch.no_grad():
        tile_mlps(model, 2).excess(model.eval())
    assert reason in caught.value.what
    assert caught.value.expected == "layers with an MLP of their own that treats each token by itself"
    assert caught.value.do.startswith("set model.mlp_tiles=1")


def test_an_mlp_that_mixes_tokens_is_refused() -> None:
    """The probe sees a shift by one token across the end of a tile."""
    model = build("llama").eval()
    mlp: Any = model.base_model.layers[1].mlp  # type: ignore[union-attr, index]
    token_wise = mlp.forward
    mlp.forward = lambda hidden: token_wise(nn.functional.pad(hidden, (0, 0, 1, -1)))
    with torch.no_grad():
        excess = tile_mlps(model, 4).excess(model)
    with pytest.raises(ModelError, match=r"model.mlp_tiles: llama has layers whose MLP mixes tokens"):
        check_tiles(excess, "llama")


def peak_gib(tiles: int, *, recompute: bool) -> float:
    """Activations and temporaries at the peak of forward and backward, traced: 4 layers, 16,384 tokens, MLP 16 x width."""
    config = Qwen2Config(
        vocab_size=64, hidden_size=128, intermediate_size=2048, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4
    )  # fmt: skip
    with FakeTensorMode():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()
        if tiles > 1:
            tile_mlps(model, tiles)
        if recompute:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        tracker = MemTracker()
        tracker.track_external(model)
        tokens = torch.zeros(1, 16384, dtype=torch.int64)
        with tracker:
            # No mask: sdpa is causal without one, and a mask of tokens x tokens would outweigh what is measured.
            inputs = {"input_ids": tokens, "attention_mask": {"full_attention": None}, "use_cache": False}
            model.base_model(**inputs).last_hidden_state.sum().backward()
    kinds = next(iter(tracker.get_tracker_snapshot("peak").values()))
    return sum(size for kind, size in kinds.items() if str(kind).split(".")[-1] in ("ACT", "TEMP")) / 2**30


def test_tiles_lower_the_peak() -> None:
    """What torch's memory tracker counts at the peak falls to less than half, with and without recomputed layers."""
    for recompute in (False, True):
        assert peak_gib(8, recompute=recompute) < 0.5 * peak_gib(1, recompute=recompute)
