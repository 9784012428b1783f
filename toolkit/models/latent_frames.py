"""Encoders of raw sound (wav2vec 2.0 and its kin): recordings of several lengths, each computed as if it were alone.

Such a model turns samples into frames by convolutions, the first of which is followed, in many checkpoints, by a norm over all
of a recording's time; there padding would change what is real, so that a loss would depend on what else is in a batch.
Here that norm looks at the real part alone. What SpecAugment hides is given from outside, too: transformers draws it
inside the model from numpy's global state, which no seed of a run reaches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.errors import ModelError

LACKING = {
    "add_adapter": "shortens its frames once more behind the encoder",
    "squeeze_factor": "squeezes its frames",
    "conv_pos_batch_norm": "has a batch norm, which mixes recordings",
}
"""Fields of a config -> what an encoder does then that is not computed here."""


def check_frames(config: Any) -> None:
    """Raise ModelError for an architecture whose frames are not understood here."""
    stated = {name: getattr(config, name, None) for name in LACKING}
    found = next((name for name, value in stated.items() if value and value != 1), None)
    if found is None and hasattr(config, "conv_kernel") and hasattr(config, "conv_stride"):
        return
    why = f"{LACKING[found]} ({found}={stated[found]})" if found else "has no conv_kernel and conv_stride"
    raise ModelError(
        f"the model ({config.model_type}) {why}",
        expected="an encoder of raw sound such as wav2vec2, hubert, wavlm, unispeech or data2vec-audio",
        do="choose another checkpoint",
    )


def num_frames(samples: int, config: Any, layers: int | None = None) -> int:
    """Frames that the first `layers` convolutions (None: all) make of so many samples."""
    for kernel, stride in list(zip(config.conv_kernel, config.conv_stride, strict=True))[:layers]:
        samples = max(0, (samples - kernel) // stride + 1)
    return samples


class LatentFrames:
    """The part of a model in which padding and masks act. Changes the model's own code, not its weights."""

    def __init__(self, model: Any) -> None:
        self.base: Any = model.base_model
        self.config = model.config
        self._lengths: Sequence[int] = ()
        """Of each recording, in frames behind the first convolution."""
        self._times: Tensor | None = None
        self._features: Tensor | None = None
        self.base._mask_hidden_states = self._masked
        for module in self.base.feature_extractor.modules():
            if isinstance(module, nn.GroupNorm):
                self._norm(module)

    def expect(self, samples: Sequence[int], times: Tensor | None = None, features: Tensor | None = None) -> None:
        """What the next recordings are: lengths in samples, and the frames [B, T] and features [B, H] to hide."""
        self._lengths = [num_frames(count, self.config, 1) for count in samples]
        self._times, self._features = times, features

    def _masked(self, hidden: Tensor, mask_time_indices: Any = None, attention_mask: Any = None) -> Tensor:
        """In the place of the model's own: hidden [B, T, H] with what is to be hidden behind its mask vector, or 0."""
        vector = getattr(self.base, "masked_spec_embed", None)
        if self._times is not None and vector is not None:
            # Also where nothing is hidden: a weight outside the graph on one rank alone would be waited for on others.
            hidden = torch.where(self._times.unsqueeze(-1), vector.to(hidden.dtype), hidden)
        if self._features is not None:
            hidden = hidden.masked_fill(self._features.unsqueeze(1), 0.0)
        return hidden

    def _norm(self, module: nn.GroupNorm) -> None:
        """Let `module`, which has a group for each channel, look at the real part of each recording alone.

        Also where none is padded: another backward pass would give the gradients of weight and bias in another order than on
        ranks whose recordings are, and ZeRO-2 reduces them in the order in which they come.
        """

        def forward(hidden: Tensor) -> Tensor:
            lengths = torch.tensor(self._lengths, device=hidden.device).view(-1, 1, 1)
            is_real = torch.arange(hidden.shape[-1], device=hidden.device) < lengths
            values = hidden.float()
            mean = (values * is_real).sum(-1, keepdim=True) / lengths
            centred = (values - mean) * is_real
            variance = centred.square().sum(-1, keepdim=True) / lengths
            normed = centred * torch.rsqrt(variance + module.eps)
            scaled = normed * module.weight.float().view(1, -1, 1) + module.bias.float().view(1, -1, 1)
            return scaled.to(hidden.dtype)

        module.forward = forward  # type: ignore[method-assign, assignment]
