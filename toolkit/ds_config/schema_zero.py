"""Key tables of zero_optimization, as of DeepSpeed 0.19.8.

Sources: deepspeed/runtime/zero/{config,offload_config,leaf_module_config}.py, runtime/zenflow/zenflow_config.py.
"""

from __future__ import annotations

from dataclasses import replace

from toolkit.ds_config.schema_keys import (
    BOOL,
    ELEMENTS,
    NON_NEGATIVE,
    SHARE,
    Key,
    Section,
    one_of,
    retired,
)

OFFLOAD_DEVICE = Key("text", choices=("none", "cpu", "nvme"), accelerate=True)
NVME_PATH = Key("text", nullable=True, accelerate=True).that("is the folder on the disk, for device nvme")
PINNED = BOOL.that("page-locks the host memory", absent="true: the host memory is page-locked, within `ulimit -l`")

OFFLOAD_PARAM = Section(
    {
        "device": OFFLOAD_DEVICE.that(
            "is where parameters wait until they are used: none, cpu or nvme", absent="none: they stay on the GPU"
        ),
        "nvme_path": NVME_PATH,
        "buffer_count": NON_NEGATIVE.that("is the number of buffers for nvme; 5 where it is absent"),
        "buffer_size": ELEMENTS.that("is the size of each in elements; 100,000,000 where it is absent"),
        "max_in_cpu": ELEMENTS.that(
            "is how many elements stay in host memory with nvme; 1,000,000,000 where it is absent"
        ),
        "pin_memory": PINNED,
    },
    nullable=True,
    is_closed=True,
    does="keeps parameters in host memory or on a disk until they are used (stage 3)",
)

OFFLOAD_OPTIMIZER = Section(
    {
        "device": OFFLOAD_DEVICE.that(
            "is where the optimizer's states are and are updated: none, cpu or nvme",
            absent="none: they stay on the GPU",
        ),
        "nvme_path": NVME_PATH,
        "buffer_count": NON_NEGATIVE.that("is the number of buffers for nvme; 4 where it is absent"),
        "pin_memory": PINNED,
        "pipeline_read": BOOL.that("reads the next states while these are updated (nvme)"),
        "pipeline_write": BOOL.that("writes the last states while these are updated (nvme)"),
        "fast_init": BOOL.that("fills the disk faster at the start (nvme)"),
        "ratio": SHARE.that("is the share of states that is offloaded; 1.0 where it is absent"),
        "super_offload": BOOL.that("overlaps the update on the host with backward, for Superchips"),
        "cpuadam_cores_perc": SHARE.that("is the share of cores that super_offload takes; 0.8 where it is absent"),
    },
    nullable=True,
    is_closed=True,
    does="keeps the optimizer's states in host memory or on a disk and updates them on the CPU",
)

ZENFLOW = Section(
    {
        "topk_ratio": Key("number", above=0, high=1).that(
            "is the share of gradient columns updated on the GPU; 0.1 where it is absent"
        ),
        "select_strategy": one_of("auto", "step", "epoch").that("says when those columns are chosen anew"),
        "select_interval": Key("int", low=1, choices=("auto",)).that("is after how many steps or epochs"),
        "update_interval": Key("int", low=1, choices=("auto",)).that(
            "updates the other columns every so many steps, and replaces gradient_accumulation_steps"
        ),
        "overlap_step": BOOL.that("overlaps the update on the host with the next steps"),
        "offload": BOOL.that("moves the chosen columns' states to the host too"),
        "auto_ratio": SHARE.that("is the threshold by which update_interval is found; 0.99 where it is absent"),
        "full_warm_up_rounds": NON_NEGATIVE.that("updates all columns in the first so many rounds"),
        "pt_reserved_cores_perc": SHARE.that("is the share of cores left to PyTorch; 0.5 where it is absent"),
        "steps_per_epoch": retired("nothing: DeepSpeed fills it in while it runs"),
    },
    nullable=True,
    is_closed=True,
    does="updates the most important gradients on the GPU at once and the others on the host later",
)

LEAF_MODULE = Section(
    {
        "classes": Key("texts").that(
            "lists their classes",
            absent="the blocks with experts of Mixtral, Qwen2-MoE and Qwen3-MoE; those of other models may hang",
        ),
        "names": Key("texts").that("lists their names in the model"),
        "name_suffixes": Key("texts").that("lists the ends of their names"),
    },
    is_closed=True,
    does="names modules that stage 3 gathers as a whole, such as blocks with experts",
    absent="only the blocks with experts of Mixtral, Qwen2-MoE and Qwen3-MoE are; ranks may wait for one another in others",
)

STAGE3_ALIASES: dict[str, Key] = {
    "prefetch_bucket_size": ELEMENTS.that(
        "is how many elements are gathered ahead of their use", absent="50,000,000 elements are gathered ahead"
    ),
    "param_persistence_threshold": ELEMENTS.that(
        "leaves parameters of fewer elements on every rank", absent="100,000: smaller parameters stay on every rank"
    ),
    "model_persistence_threshold": ELEMENTS.that("is the most elements that stay on every rank in this way"),
    "max_live_parameters": ELEMENTS.that(
        "is the most elements gathered at a time",
        absent="1,000,000,000 elements may be gathered at a time: 2 GB in 16 bits",
    ),
    "max_reuse_distance": ELEMENTS.that(
        "keeps a parameter that is used again within so many elements; 1,000,000,000 where it is absent"
    ),
    "gather_16bit_weights_on_model_save": BOOL.that(
        "lets save_16bit_model, and save_model of Hugging Face, gather the weights",
        absent="false: save_model of Hugging Face writes no weights at stage 3",
    ),
    "module_granularity_threshold": ELEMENTS.that(
        "gathers modules of fewer parameters per part as a whole; 0 for none"
    ),
    "use_all_reduce_for_fetch_params": BOOL.that("gathers parameters by an all-reduce"),
    "allgather_sequential": BOOL.that("gathers parameters one by one, without a common buffer"),
}
"""Keys that are written with or without the prefix "stage3_"."""

GATHER = "gather_16bit_weights_on_model_save"
FILLED_BY_TRAINER = {"prefetch_bucket_size", "param_persistence_threshold", "gather_16bit_weights_on_model_save"}
"""Of those, the ones in which Hugging Face replaces "auto", under the prefixed name only."""


def _both_spellings() -> dict[str, Key]:
    keys: dict[str, Key] = {}
    for name, key in STAGE3_ALIASES.items():
        keys[name] = replace(key, absent="")
        keys[f"stage3_{name}"] = replace(key, auto=name in FILLED_BY_TRAINER, aliases=(name,))
    return keys


ON_THE_HOST = {"device": "cpu"}

ZERO = Section(
    {
        "stage": Key("int", low=0, high=3, accelerate=True).that(
            "says what is sharded over the ranks",
            absent="0: nothing is sharded, and every rank holds all of it",
            does_for={
                0: "shards nothing: every rank holds all of it",
                1: "shards the optimizer's states over the ranks",
                2: "shards the optimizer's states and the gradients over the ranks",
                3: "shards the optimizer's states, the gradients and the parameters over the ranks",
            },
        ),
        "contiguous_gradients": BOOL.that("copies gradients into one buffer as they come; true where it is absent"),
        "reduce_scatter": BOOL.that("gives each rank its part of the sum alone; true where it is absent"),
        "reduce_bucket_size": Key("count", low=1, auto=True).that(
            "is how many elements are reduced at a time",
            absent="500,000,000 elements are reduced at a time: 1 GB in 16 bits",
        ),
        "use_multi_rank_bucket_allreduce": BOOL.that(
            "reduces the buckets of several ranks at once; true where it is absent"
        ),
        "allgather_partitions": BOOL.that("is stored and never read"),
        "allgather_bucket_size": ELEMENTS.that(
            "is how many elements are gathered at a time after an update",
            absent="500,000,000 elements are gathered at a time: 1 GB in 16 bits",
        ),
        "overlap_comm": Key("bool", nullable=True).that(
            "reduces gradients while backward goes on",
            absent="true at stage 3, false below: there backward waits for the reduction",
        ),
        "compute_grad_norm": BOOL.that("computes the norm of the gradients; true where it is absent"),
        "load_from_fp32_weights": BOOL.that("takes masters from a checkpoint's fp32 weights; true where it is absent"),
        "elastic_checkpoint": BOOL.that("is the old form of universal checkpoints"),
        "offload_param": OFFLOAD_PARAM,
        "offload_optimizer": OFFLOAD_OPTIMIZER,
        "zenflow": ZENFLOW,
        "sub_group_size": ELEMENTS.that(
            "is how many elements the optimizer updates at a time (stage 3); 1,000,000,000 where it is absent"
        ),
        "cpu_offload_param": retired(
            '"offload_param": {"device": "cpu"}',
            acts_as=BOOL,
            aliases=("offload_param",),
            becomes=("offload_param", ON_THE_HOST),
        ),
        "cpu_offload_use_pin_memory": retired('"pin_memory" inside offload_param or offload_optimizer'),
        "cpu_offload": retired(
            '"offload_optimizer": {"device": "cpu"}',
            acts_as=BOOL,
            aliases=("offload_optimizer",),
            becomes=("offload_optimizer", ON_THE_HOST),
        ),
        **_both_spellings(),
        "stage3_gather_fp16_weights_on_model_save": retired(
            '"stage3_gather_16bit_weights_on_model_save"',
            acts_as=BOOL,
            aliases=(GATHER, f"stage3_{GATHER}"),
            becomes=(f"stage3_{GATHER}", None),
        ),
        "ignore_unused_parameters": BOOL.that("trains on where a parameter got no gradient; true where it is absent"),
        "legacy_stage1": retired('"stage": 1 alone: the legacy implementation was removed'),
        "round_robin_gradients": BOOL.that("shares the copying of gradients to the host among ranks"),
        "parameter_alignment": BOOL.that(
            "pads parameters to 16 bytes in the flat buffer, which other runs cannot load"
        ),
        "zero_hpz_partition_size": NON_NEGATIVE.that(
            "keeps a second copy of the parameters within so many ranks (ZeRO++ hpZ); 1 for none"
        ),
        "zero_quantized_weights": BOOL.that("gathers parameters in 8 bits (ZeRO++ qwZ)"),
        "zero_quantized_nontrainable_weights": BOOL.that("keeps frozen parameters in 8 bits"),
        "zero_quantized_gradients": BOOL.that("reduces gradients in few bits (ZeRO++ qgZ)"),
        "memory_efficient_linear": BOOL.that(
            "replaces torch's linear function by one that keeps no gathered weight; true where it is absent"
        ),
        "pipeline_loading_checkpoint": BOOL.that("loads a checkpoint rank by rank, to save host memory"),
        "override_module_apply": BOOL.that("gathers parameters within Module.apply; true where it is absent"),
        "log_trace_cache_warnings": BOOL.that("logs where the order of modules changed"),
        "enable_sanity_checks": BOOL.that("checks stage 3's own bookkeeping, for debugging"),
        "save_muon_momentum_buffer_in_memory": BOOL.that("keeps Muon's momentum in memory with nvme"),
        "leaf_module": LEAF_MODULE,
    },
    removed={
        "mics_shard_size": "nothing: MiCS was removed; ZeRO++ hpZ (zero_hpz_partition_size) is the nearest",
        "mics_hierarchical_params_gather": "nothing: MiCS was removed",
        "zeropp_loco_param": "nothing: LoCo was removed; zero_quantized_gradients alone stays",
    },
    or_boolean=True,
    is_closed=True,
    does="shards optimizer states, gradients and parameters over the ranks (ZeRO)",
    absent="stage 0: nothing is sharded, and every rank holds all of it",
)

ZERO_DEFAULTS = {
    "contiguous_gradients": True,
    "reduce_scatter": True,
    "reduce_bucket_size": 500_000_000,
    "allgather_bucket_size": 500_000_000,
    "use_multi_rank_bucket_allreduce": True,
    "allgather_partitions": True,
    "sub_group_size": 1_000_000_000,
    "prefetch_bucket_size": 50_000_000,
    "param_persistence_threshold": 100_000,
    "max_live_parameters": 1_000_000_000,
    "max_reuse_distance": 1_000_000_000,
    "module_granularity_threshold": 0,
    "ignore_unused_parameters": True,
    "zero_hpz_partition_size": 1,
    "memory_efficient_linear": True,
    "override_module_apply": True,
}
"""What DeepSpeed takes for keys that are not written, where that is neither null nor false; "stage3_" left out."""
