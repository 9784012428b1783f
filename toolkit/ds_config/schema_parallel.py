"""Key tables of tensor, expert and pipeline parallelism, as of DeepSpeed 0.19.8.

Sources: deepspeed/runtime/tensor_parallel/config.py, module_inject/{autotp_config,auto_ep_config}.py,
module_inject/auto_ep_presets/base.py, runtime/config.py (get_pipeline_config), runtime/pipe/engine.py.
"""

from __future__ import annotations

from toolkit.ds_config.schema_keys import (
    BOOL,
    INTEGER,
    NON_NEGATIVE,
    NUMBER,
    POSITIVE,
    TEXT,
    TEXT_OR_NULL,
    Key,
    Section,
    one_of,
    retired,
)

LAYER_SPEC = Section(
    {
        "patterns": Key("texts").that("lists regular expressions for the names of parameters"),
        "partition_type": one_of("row", "column", "skip", caseless=True).that(
            "cuts them by rows, by columns or not at all"
        ),
        "gather_output": BOOL.that("gives every rank the whole output of a layer cut by columns"),
        "grad_allreduce": BOOL.that("sums the gradient of a skipped parameter over the tensor-parallel ranks"),
        "shape": Key("list", nullable=True).that("views the weight in this shape before it is cut"),
        "partition_dim": Key("int", nullable=True).that("is the axis that is cut"),
        "model_types": Key("texts", nullable=True).that("limits the rule to these model types"),
    },
    does="says how the parameters of one kind are cut",
)

TP_GROUP = Section(
    {
        "tp_size": POSITIVE.that("is the number of tensor-parallel ranks for inference; training reads autotp_size"),
        "tp_grain_size": POSITIVE.that("is not used in training yet"),
        **dict.fromkeys(("mpu", "tp_group"), retired("nothing: it holds a Python object, which JSON cannot")),
    },
    is_closed=True,
    does="groups ranks; training takes autotp_size",
)

TENSOR_PARALLEL = Section(
    {
        "autotp_size": Key("int", low=0).that(
            "splits each layer over that many ranks (AutoTP); 0 for none", absent="0: no layer is split"
        ),
        "dtype": retired("nothing: it holds a torch.dtype, which JSON cannot"),
        "tp_overlap_comm": BOOL.that("overlaps the all-reduce of a layer with its computation"),
        "vocab_parallel_lm_head": Key("bool", nullable=True).that(
            "splits the output layer by vocabulary; null: as the model's plan says"
        ),
        "vocab_parallel_ce_backend": one_of("torch", "liger").that("is who computes the loss of a split output layer"),
        "tensor_parallel": TP_GROUP,
        "tp": TP_GROUP,
        "injection_policy_tuple": Key("list", nullable=True).that(
            "names the layers whose outputs are summed, for unknown models"
        ),
        "partition_config": Section(
            {
                "tp_size": POSITIVE.that("is overwritten by autotp_size"),
                "layer_specs": Key("list", item=LAYER_SPEC).that(
                    "lists the rules, the first that fits a parameter holds"
                ),
                "embedding_partition_dim": INTEGER.that("is stored and never read"),
                "lm_head_patterns": Key("texts").that("lists the names of the output layer"),
                "use_default_specs": BOOL.that("adds the rules to those of preset_model"),
                "strict_mode": BOOL.that("refuses parameters for which no rule fits"),
            },
            nullable=True,
            does="says how each kind of parameter is cut, in place of AutoTP's own rules",
        ),
        "preset_model": one_of(
            "llama", "bloom", "chatglm", "mixtral", "deepseek_v2", "qwen2", "phi3", caseless=True, nullable=True
        ).that("takes DeepSpeed's rules for that family of models"),
        "keep_module_on_host": BOOL.that("leaves loaded weights in host memory"),
        "replace_with_kernel_inject": BOOL.that("puts inference kernels into the model"),
        "kernel_inject": Key("bool", aliases=("replace_with_kernel_inject",)).that(
            "puts inference kernels into the model"
        ),
    },
    twins=(("tp", "tensor_parallel"),),
    is_closed=True,
    does="splits each layer over several ranks (AutoTP)",
)

EXPERT_PARALLEL = Section(
    {
        "enabled": BOOL.that("spreads the experts of a mixture-of-experts model over ranks (AutoEP)"),
        "autoep_size": POSITIVE.that("is the number of ranks that share the experts; 1 where it is absent"),
        "expert_tensor_parallel_size": Key("int", low=1, high=1).that("splits each expert over ranks; only 1 works"),
        "validate_folding_routing": BOOL.that("checks in each step that tensor-parallel ranks route alike"),
        "async_split_plan": BOOL.that("plans the exchange of tokens while others compute"),
        "use_grouped_mm": BOOL.that("computes all experts in one grouped product; true where it is absent"),
        "disable_triton_grouped_mm": BOOL.that("leaves Triton's kernel for that product out"),
        "route_norm": Key("bool", nullable=True).that(
            "makes the weights of a token's experts sum to 1; null: as the model does"
        ),
        "route_scale": NUMBER.that("multiplies the weights of the experts; 1.0 where it is absent"),
        "score_apply": one_of("auto", "pre", "post").that("weights a token before or after its experts"),
        "combine_impl": one_of("auto", "weighted_sum", "fused_weighted_sum", "legacy_bmm").that(
            "is how the outputs of experts are summed"
        ),
        "row_weighting_impl": one_of("auto", "eager", "fused").that("is how rows are weighted"),
        "gate_up_impl": one_of("separate", "fused").that(
            "computes the two inner products of an expert apart or at once"
        ),
        "comm_backend": one_of("comm", "deepep").that("exchanges tokens by torch's collectives or by DeepEP"),
        "comm_num_sm": POSITIVE.that("is the number of GPU processors that DeepEP may use; 12 where it is absent"),
        "comm_qp_margin": Key("int", low=0).that("is DeepEP's margin of queue pairs; 4 where it is absent"),
        "comm_max_tokens_per_rank": Key("int", low=0).that("sizes DeepEP's buffers; 0: as needed"),
        "num_expert_groups": Key("int", low=1, nullable=True).that(
            "is the number of groups that experts are chosen by"
        ),
        "num_limited_groups": Key("int", low=1, nullable=True).that("is the number of groups a token may choose from"),
        "score_func": one_of("auto", "softmax", "sigmoid").that("makes scores of the router's outputs"),
        "top_k": Key("int", low=1, choices=("auto",)).that("is the number of experts per token; auto: the model's"),
        "load_balance_coeff": Key("any", instead="nothing (or null): AutoEP has no load-balancing loss", nullable=True),
        "routed_scaling_factor": Key("number", choices=("auto",)).that(
            "multiplies the sum of the experts; auto: the model's"
        ),
        "has_shared_experts": Key("bool", nullable=True).that(
            "says that some experts see every token; null: as the preset"
        ),
        "preset_model": one_of(
            "mixtral", "qwen3_moe", "qwen3_5_moe", "deepseek_v2", "deepseek_v3", "minimax_m3", nullable=True
        ).that("takes DeepSpeed's names and rules for that family of models"),
        "expert_activation": one_of("swiglu", "geglu_tanh", "swiglu_clamped", "swiglu_oai", nullable=True).that(
            "is the function inside of an expert; null: the preset's"
        ),
        "moe_layer_pattern": TEXT_OR_NULL.that("is a regular expression for the layers with experts"),
        "expert_pattern": TEXT_OR_NULL.that("is a regular expression for the experts"),
        "router_pattern": TEXT_OR_NULL.that("is a regular expression for the routers"),
        "expert_w1": TEXT_OR_NULL.that("names the experts' first weight"),
        "expert_w2": TEXT_OR_NULL.that("names the experts' output weight"),
        "expert_w3": TEXT_OR_NULL.that("names the experts' gate; null: fused into the first weight"),
        "num_experts_attr": TEXT_OR_NULL.that("names the model's attribute for the number of experts"),
        "top_k_attr": TEXT_OR_NULL.that("names the model's attribute for the experts per token"),
        "shared_experts_pattern": TEXT_OR_NULL.that("is a regular expression for the shared experts"),
        "shared_experts_gate_pattern": TEXT_OR_NULL.that("is a regular expression for their gate"),
    },
    does="spreads the experts of a mixture-of-experts model over ranks (AutoEP)",
)

PIPELINE = Section(
    {
        "stages": Key("int", low=1, choices=("auto",)).that("is stored and never read: the PipelineModule says it"),
        "partition": TEXT.that("is stored and never read: the PipelineModule says it"),
        "seed_layers": BOOL.that("is stored and never read: the PipelineModule says it"),
        "activation_checkpoint_interval": NON_NEGATIVE.that("recomputes activations every so many layers; 0 for never"),
        "use_reentrant": BOOL.that("takes DeepSpeed's reentrant checkpointing; true where it is absent"),
        "pipe_partitioned": BOOL.that("sends activations in parts over tensor-parallel ranks; true where it is absent"),
        "grad_partitioned": BOOL.that(
            "sends their gradients in parts over tensor-parallel ranks; true where it is absent"
        ),
    },
    does="sets how a PipelineModule runs; without one nothing reads it",
)
