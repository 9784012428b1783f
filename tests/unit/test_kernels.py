"""liger's kernels in transformers' models: which modules, one model only, and the probe that compares. No kernel runs here."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.architectures import LAYERS, tiny_config
from tests.parity.strategies import recipe
from toolkit.errors import ModelError, RecipeError
from toolkit.models import kernels as fused
from toolkit.recipe import Model

if not fused.is_installed():
    pytest.skip("liger-kernel is not installed: pip install 'toolkit[liger]'", allow_module_level=True)

NORMS = 2 * LAYERS + 1
REPLACED = {
    "llama": {"LlamaRMSNorm": NORMS, "LlamaMLP": LAYERS, "LlamaAttention": LAYERS},
    "qwen2": {"Qwen2RMSNorm": NORMS, "Qwen2MLP": LAYERS, "Qwen2Attention": LAYERS},
    "qwen3": {"Qwen3RMSNorm": NORMS + 2 * LAYERS, "Qwen3MLP": LAYERS, "Qwen3Attention": LAYERS},
    "mistral": {"MistralRMSNorm": NORMS, "MistralMLP": LAYERS, "MistralAttention": LAYERS},
    "gemma": {"GemmaRMSNorm": NORMS, "GemmaMLP": LAYERS, "GemmaAttention": LAYERS},
    "mixtral": {"MixtralRMSNorm": NORMS, "MixtralAttention": LAYERS},
    "glm4": {"Glm4RMSNorm": NORMS + 2 * LAYERS, "Glm4MLP": LAYERS},
}
"""Modules of each class that compute by a kernel; experts and GLM's interleaved rotation stay as they are."""


def build(kind: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(tiny_config(kind), dtype=torch.float32).eval()


@pytest.mark.parametrize("kind", REPLACED)
def test_modules_of_one_model(kind: str) -> None:
    """Those and no others; transformers' module is as it was, and another model computes as ever."""
    model, other = build(kind), build(kind)
    names = vars(sys.modules[type(model).__module__])
    before = dict(names)
    kernels = fused.fuse(model)
    assert kernels.replaced == REPLACED[kind]
    assert names == before
    assert not any("forward" in module.__dict__ for module in other.modules())
    with kernels._off(), torch.no_grad():
        tokens = torch.arange(6)[None]
        assert torch.equal(model(tokens, use_cache=False).logits, other(tokens, use_cache=False).logits)


def test_the_probe_sees_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch code in the kernels' place: the right formulas pass, one with a wrong offset, or rotation, does not."""
    from liger_kernel.transformers import monkey_patch
    from transformers.models.llama.modeling_llama import LlamaMLP, apply_rotary_pos_emb

    def norm(offset: float) -> Any:
        def forward(self: Any, hidden: torch.Tensor) -> torch.Tensor:
            scale = torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
            return hidden * scale * (self.weight + offset)

        return forward

    def rotated(query: Any, key: Any, cos: Any, sin: Any, *rest: Any) -> Any:
        calls.append(query.shape)
        return apply_rotary_pos_emb(query, key, cos, sin * turned[0])

    calls: list[torch.Size] = []
    turned = [1.0]
    monkeypatch.setattr(monkey_patch, "liger_rotary_pos_emb", rotated)
    monkeypatch.setattr(monkey_patch.LigerSwiGLUMLP, "forward", LlamaMLP.forward)
    for offset, sign, is_right in ((0.0, 1.0, True), (0.05, 1.0, False), (0.0, -1.0, False)):
        monkeypatch.setattr(monkey_patch.LigerRMSNorm, "forward", norm(offset))
        calls.clear()
        turned[0] = sign
        with torch.no_grad():
            excess = fused.fuse(model := build("llama")).excess(model)
        assert len(calls) == LAYERS
        if is_right:
            fused.check_kernels(excess, "llama")
        else:
            with pytest.raises(ModelError, match=r"model.kernels='liger': liger-kernel's kernels change what llama"):
                fused.check_kernels(excess, "llama")


def test_what_liger_does_not_know() -> None:
    assert fused.is_known(tiny_config("llama"))
    assert not fused.is_known(tiny_config("gpt2"))


def test_kernels_are_either_ligers_or_compiled() -> None:
    with pytest.raises(RecipeError, match=r"model.kernels='liger' with model.compile=True"):
        Model(path="x", kernels="liger", compile=True)


def test_a_cpu_is_refused_or_takes_none(tmp_path: Path) -> None:
    """Before a weight is loaded; "auto" and "none" say nothing."""

    def taken(kernels: Any) -> tuple[bool, str]:
        run = recipe("causal_lm", tmp_path, tmp_path / "rows.jsonl", model=Model(path=str(tmp_path), kernels=kernels))
        return fused.choose_kernels(run, tiny_config("llama"), "cpu")

    assert taken("auto") == taken("none") == (False, "")
    with pytest.raises(ModelError) as caught:
        taken("liger")
    assert caught.value.what == ("model.kernels='liger': they are for CUDA devices, and this run computes on a CPU")
    assert caught.value.do == "leave model.kernels at 'auto'"
