"""Key tables of data_efficiency: which samples and tokens DeepSpeed's own data loader takes, as of DeepSpeed 0.19.8.

Sources: deepspeed/runtime/data_pipeline/{config,curriculum_scheduler}.py, data_sampling/data_sampler.py,
data_sampling/variable_batch_size_and_lr.py, data_routing/{scheduler,basic_layer}.py.
"""

from __future__ import annotations

from toolkit.ds_config.schema_keys import (
    BOOL,
    NON_NEGATIVE,
    NUMBER,
    POSITIVE,
    TEXT,
    TEXT_OR_NULL,
    Key,
    Section,
    one_of,
)

CURRICULUM_METRIC = Section(
    {
        "index_to_sample_path": TEXT.that("names the index file from a difficulty to its samples"),
        "index_to_metric_path": TEXT.that("names the index file from a sample to its difficulty"),
        "difficulty_type": one_of("value", "percentile").that(
            "reads a difficulty as a value or as a percentile of them"
        ),
        "clustering_type": one_of("single_cluster", "schedule_based").that(
            "draws from one pool or from one per difficulty"
        ),
        "min_difficulty": NUMBER.that("is the difficulty that training begins with"),
        "max_difficulty": NUMBER.that("is the difficulty that training ends with"),
        "schedule_type": one_of("fixed_discrete", "fixed_root", "fixed_linear", "custom").that(
            "is the curve along which the difficulty rises"
        ),
        "schedule_config": Section(
            {
                "difficulty": Key("list").that("lists the difficulties of fixed_discrete"),
                "max_step": Key("list").that("lists the steps up to which each of them lasts"),
                "total_curriculum_step": POSITIVE.that("is the step from which the greatest difficulty holds"),
                "difficulty_step": POSITIVE.that("rounds the difficulty down to a multiple of it"),
                "root_degree": POSITIVE.that("is the degree of the root along which fixed_root rises"),
            },
            does="holds the numbers of schedule_type",
        ),
    },
    required=("min_difficulty", "max_difficulty", "schedule_type"),
    does="orders the samples by one measure of difficulty",
)

RANDOM_LTD = Section(
    {
        "enabled": BOOL.that("lets the middle layers see a random part of the tokens"),
        "total_layer_num": POSITIVE.that("is the number of layers of the model"),
        "random_ltd_layer_num": POSITIVE.that("is the number of layers that drop tokens"),
        "random_ltd_layer_id": Key("list").that("lists the layers that drop tokens"),
        "model_mask_name": TEXT_OR_NULL.that("names the layers' argument that holds the attention mask"),
        "model_type": one_of("decoder", "encoder").that("says how the mask is cut"),
        "hidden_state_order": TEXT.that("says which axis of the hidden states is the batch and which the sequence"),
        "random_ltd_schedule": Section(
            {
                "min_value": POSITIVE.that("is the number of tokens kept at the beginning"),
                "max_value": POSITIVE.that("is the number of tokens kept at the end"),
                "schedule_type": one_of("fixed_linear").that("is the curve in between"),
                "schedule_config": Section(
                    {
                        "require_steps": POSITIVE.that("is the step from which max_value holds"),
                        "seq_per_step": POSITIVE.that("is by how many tokens the number grows at a time"),
                    },
                    does="holds the numbers of the curve",
                ),
            },
            does="says how many tokens are kept, from step to step",
        ),
        "layer_token_lr_schedule": Section(
            {
                "enabled": BOOL.that("scales the learning rate by the tokens that the layers saw"),
                "total_layer_tokens": POSITIVE.that("is the number of tokens times layers of the run"),
                "warmup_type": TEXT.that("is the curve of its warm-up"),
                "warmup_layer_tokens": POSITIVE.that("is the number of tokens times layers of its warm-up"),
            },
            does="counts learning-rate steps in tokens times layers",
        ),
    },
    does="drops random tokens in the middle layers (random-LTD)",
)

DATA_EFFICIENCY = Section(
    {
        "enabled": BOOL.that("switches on what is enabled inside, in the loader made from training_data="),
        "seed": NON_NEGATIVE.that("seeds the order of samples; 1234 where it is absent"),
        "data_sampling": Section(
            {
                "enabled": BOOL.that("chooses samples by what stands beside it"),
                "num_epochs": POSITIVE.that("is how often the data set may be passed through; 1000 where it is absent"),
                "num_workers": NON_NEGATIVE.that("is the number of loading processes; 0 where it is absent"),
                "pin_memory": BOOL.that("page-locks loaded batches, for faster copies to the GPU"),
                "curriculum_learning": Section(
                    {
                        "enabled": BOOL.that("gives easy samples first"),
                        "data_cluster_path": TEXT.that("is the folder for the lists of samples by difficulty"),
                        "curriculum_metrics": Section(
                            {}, each=CURRICULUM_METRIC, does="names the measures of difficulty"
                        ),
                    },
                    does="trains from easy to hard samples",
                ),
                "dynamic_batching": Section(
                    {
                        "enabled": BOOL.that("makes batches of equally many tokens"),
                        "metrics_path": TEXT.that("is the folder with the lengths of the samples"),
                        "lr_scaling_method": one_of("linear", "sqrt", "none").that(
                            "scales the learning rate with the size of the batch; linear where it is absent"
                        ),
                        "min_batch_size": POSITIVE.that("is the fewest samples of a batch"),
                        "max_batch_size": Key("int", low=1, nullable=True).that("is the most samples of a batch"),
                        "sequence_picking_order": one_of("random", "seqlen", "dataloader").that(
                            "is the order in which batches are filled; dataloader where it is absent"
                        ),
                        "max_tokens": POSITIVE.that("is the most tokens of a micro-batch"),
                        "verbose": BOOL.that("logs each batch"),
                    },
                    does="varies the batch size so that each batch has about as many tokens",
                ),
            },
            does="chooses which samples are trained on when",
        ),
        "data_routing": Section(
            {"enabled": BOOL.that("switches on what is enabled inside"), "random_ltd": RANDOM_LTD},
            does="chooses which tokens the layers see",
        ),
    },
    does="orders samples and drops tokens, in DeepSpeed's own data loader alone",
)
