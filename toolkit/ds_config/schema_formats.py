"""Key tables of the number formats: fp16, bf16, torch_autocast and data_types, as of DeepSpeed 0.19.8.

Sources: deepspeed/runtime/precision_config.py, runtime/config.py (torch_autocast, data_types), runtime/engine.py.
"""

from __future__ import annotations

from toolkit.ds_config.schema_keys import BOOL, Key, Same, Section, one_of

FP16 = Section(
    {
        "enabled": Key("bool", auto=True).that("casts the parameters to fp16 and keeps fp32 masters"),
        "auto_cast": BOOL.that("casts the inputs of the model to fp16"),
        "loss_scale": Key("number", low=0).that(
            "multiplies the loss before backward; 0: found while training",
            absent="0: the scale is found while training, and steps whose gradients overflow are skipped",
        ),
        "initial_scale_power": Key("count", low=0).that(
            "begins with a scale of 2 to that power; 16 where it is absent"
        ),
        # The bounds of these hold under a dynamic loss scale only: rules/precision.py.
        "loss_scale_window": Key("count").that(
            "doubles the scale after so many steps without overflow; 1000 where it is absent"
        ),
        "hysteresis": Key("count").that("lowers the scale at the so-manieth overflow; 2 where it is absent"),
        "consecutive_hysteresis": BOOL.that("counts overflows in a row alone"),
        "min_loss_scale": Key("count").that("is the smallest scale; 1 where it is absent"),
        "fp16_master_weights_and_grads": BOOL.that(
            "keeps masters and gradients in fp16, offloaded to DeepSpeed's CPU Adam alone"
        ),
    },
    is_closed=True,
    does="trains in fp16 with a loss scale",
)

BF16 = Section(
    {
        "enabled": Key("bool", auto=True).that("casts the parameters to bf16 and keeps fp32 masters"),
        "immediate_grad_update": BOOL.that("adds each gradient to the fp32 sum as it comes, at stage 1 with fp32 sums"),
        "check_grad_overflow": BOOL.that(
            "skips a step whose gradients are inf or NaN",
            absent="true: a step whose gradients are inf or NaN is skipped",
        ),
        "bf16_master_weights_and_grads": BOOL.that(
            "keeps masters and gradients in bf16", absent="false: masters and states take fp32"
        ),
        "bf16_optimizer_states": BOOL.that("keeps the optimizer's states in bf16 too"),
    },
    removed={"check_overflow": Same("check_grad_overflow")},
    is_closed=True,
    does="trains in bf16",
)

# Hugging Face fills in "auto" under the name "bf16" only.
OLD_BF16 = Section(
    {**BF16.keys, "enabled": BOOL.that("casts the parameters to bf16")}, removed=BF16.removed, is_closed=True
)

FP32_NAMES = ("fp32", "float32", "float", "torch.float32")
FP16_NAMES = ("fp16", "float16", "half", "torch.float16")
BF16_NAMES = ("bf16", "bfloat16", "torch.bfloat16")

TORCH_AUTOCAST = Section(
    {
        "enabled": BOOL.that("computes under torch.autocast, and leaves the parameters as they are"),
        "dtype": one_of(*BF16_NAMES, *FP16_NAMES).that(
            "is the format it computes in", absent="the device decides: fp16 on CUDA, bf16 on a CPU"
        ),
        "lower_precision_safe_modules": Key("texts").that(
            "lists the classes whose gradients are exchanged in that format"
        ),
    },
    does="computes in 16 bits by torch.autocast, as plain PyTorch does",
)

DATA_TYPES = Section(
    {
        "grad_accum_dtype": one_of(*FP32_NAMES, *FP16_NAMES, *BF16_NAMES, nullable=True).that(
            "is the format in which micro-batches are summed",
            absent="the parameters' own format: in bf16 small gradients are lost in the sum",
        ),
        "param_dtype": one_of(*FP32_NAMES, *FP16_NAMES, *BF16_NAMES, nullable=True).that(
            "must be the format that is enabled"
        ),
        "buffer_dtype": one_of(*FP32_NAMES, *FP16_NAMES, *BF16_NAMES, nullable=True).that(
            "casts the model's buffers; null: as they were loaded"
        ),
        "keep_in_fp32_modules": Key("texts", choices=("auto",)).that(
            "lists modules whose buffers stay in fp32; auto: the model's own list"
        ),
    },
    does="sets formats of sums, parameters and buffers",
    absent="micro-batches are summed in the parameters' own format: in bf16 small gradients are lost in the sum",
)

COMMUNICATION_DTYPE = one_of("fp32", "fp16", "bf16", caseless=True, nullable=True)

NUMBER_FORMATS = {
    **dict.fromkeys(FP32_NAMES, "fp32"),
    **dict.fromkeys(FP16_NAMES, "fp16"),
    **dict.fromkeys(BF16_NAMES, "bf16"),
}
"""Every spelling of a number format -> fp32, fp16 or bf16."""
