"""What other trainers call the fields of a recipe: the Hugging Face Trainer, TRL, LLaMA-Factory, axolotl, DeepSpeed's JSON.

Whoever comes from one of them types its names first. None is accepted, as one field has one name; each is answered.
"""

from __future__ import annotations

from collections.abc import Sequence

from toolkit.errors import RecipeError, did_you_mean

SAME = {
    "optimizer.learning_rate": "lr learning_rate peak_lr max_lr",
    "optimizer.weight_decay": "wd weight_decay",
    "optimizer.eps": "adam_epsilon epsilon adam_eps",
    "optimizer.max_grad_norm": "max_grad_norm gradient_clipping clip_grad grad_clip gradient_clip_val clip_grad_norm",
    "batch.micro_size": "bs batch_size micro_batch_size micro_bs mbs per_device_train_batch_size per_gpu_train_batch_size "
    "device_batch_size train_micro_batch_size_per_gpu per_device_batch_size",
    "batch.global_size": "train_batch_size global_batch_size total_batch_size effective_batch_size gbs",
    "batch.sequence_length": "max_seq_length max_seq_len max_length max_len seq_len seq_length sequence_len cutoff_len "
    "block_size model_max_length context_length max_sequence_length",
    "steps": "max_steps num_steps n_steps train_steps max_train_steps num_train_steps total_steps train_iters iterations",
    "model.path": "model_name_or_path model_name model_id base_model model_path pretrained_model_name_or_path",
    "model.tokenizer": "tokenizer_name tokenizer_name_or_path tokenizer_path tokenizer",
    "model.activation_checkpointing": "gradient_checkpointing grad_checkpoint activation_checkpoint",
    "model.attention": "attn_implementation attention_implementation",
    "data.train": "dataset datasets dataset_name dataset_path train_dataset train_file train_data train_path data_path data_files",
    "data.subset": "dataset_config dataset_config_name",
    "data.split": "dataset_train_split train_split",
    "data.evaluation": "eval_dataset eval_file eval_data validation_file val_file valid_file test_file test_datasets",
    "data.evaluation_split": "dataset_test_split eval_split",
    "data.max_examples": "max_samples max_train_samples",
    "data.packing": "sample_packing",
    "task.text_field": "dataset_text_field text_column",
    "schedule.type": "lr_scheduler_type lr_scheduler scheduler_type",
    "schedule.warmup_steps": "warmup num_warmup_steps lr_warmup_steps warmup_num_steps",
    "precision.dtype": "torch_dtype dtype mixed_precision",
    "parallel.zero_stage": "stage zero deepspeed_stage zero_optimization_stage",
    "parallel.tensor": "tensor_parallel_size tp_size tp autotp_size",
    "parallel.pipeline": "pipeline_parallel_size pp_size pp",
    "parallel.sequence": "sequence_parallel_size sp_size sp sequence_parallel_degree",
    "parallel.offload_optimizer": "offload_optimizer_device",
    "parallel.offload_param": "offload_param_device",
    "checkpoint.every_steps": "save_steps save_every saves_every",
    "checkpoint.keep": "save_total_limit",
    "checkpoint.keep_best": "load_best_model_at_end",
    "evaluation.every_steps": "eval_steps eval_every",
    "evaluation.metric": "metric_for_best_model",
    "evaluation.early_stopping_patience": "early_stopping_patience",
    "task.label_smoothing": "label_smoothing_factor",
    "task.neftune_alpha": "neftune_noise_alpha",
    "tuning.rank": "r lora_rank lora_r peft_lora_r",
    "tuning.alpha": "lora_alpha peft_lora_alpha",
    "tuning.dropout": "lora_dropout",
    "tuning.target_modules": "lora_target_modules lora_target lora_modules",
    "tuning.modules_to_save": "lora_modules_to_save additional_target",
    "tuning.use_rslora": "use_rslora peft_use_rslora",
    "tuning.use_dora": "use_dora peft_use_dora",
    "tracking.trackers": "report_to",
    "tracking.project": "wandb_project project_name",
    "launch.timeout_s": "ddp_timeout",
    "seed": "random_seed data_seed",
    "output_dir": "output_path out_dir save_dir logging_dir run_name",
    "resume": "resume_from_checkpoint auto_resume_from_checkpoints resume_from",
}
"""Field or option of ours -> names of others for the same thing, whose values mean the same."""

OTHER = {
    "gradient_accumulation_steps grad_accum accumulation_steps gas": (
        "batch.global_size",
        "the sequences of one step, over all ranks: batch.micro_size x accumulation x ranks; the accumulation follows",
    ),
    "num_train_epochs num_epochs n_epochs epoch": ("epochs", "the passes over the data; where the recipe has steps, --steps None goes with it"),
    "warmup_ratio lr_warmup_fraction warmup_fraction": ("schedule.warmup_steps", "optimizer steps: the ratio x steps"),
    "min_lr min_lr_ratio cosine_min_lr_ratio min_lr_rate": ("schedule.min_ratio", "the last rate as a share of the peak"),
    "optim optimizer_name optimizer_type": ("optimizer.type", "its name without a suffix, such as adamw; see --help for all"),
    "adam_beta1 adam_beta2 beta1 beta2": ("optimizer.betas", "both numbers, such as 0.9 0.999"),
    "bf16 fp16 fp32 half_precision": ("precision.dtype", "bf16, fp16, fp32, or auto"),
    "flash_attn flash_attention sdp_attention xformers_attention": ("model.attention", "the name of one: varlen, flash_attention_2, sdpa, eager, or auto"),
    "val_size val_set_size validation_split_percentage test_size": ("data.evaluation_examples", "a number of examples, not a share"),
    "max_eval_samples": ("evaluation.max_sequences", "sequences: packs, where data.packing makes them"),
    "save_strategy": ("checkpoint.every_steps", "optimizer steps; 0: only the last"),
    "eval_strategy evaluation_strategy do_eval evals_per_epoch": ("evaluation.every_steps", "optimizer steps; 0: before the first and after the last"),
    "train_on_inputs train_on_prompt mask_prompt mask_history completion_only_loss assistant_only_loss": ("task.train_on", "assistant (the default: answers only) or all"),
    "cpu_offload offload offload_optimizer_to_cpu": ("parallel.offload_optimizer", "none, cpu or nvme; --parallel.offload_param at stage 3"),
    "dataloader_num_workers num_workers preprocessing_num_workers": ("data.prefetch", "micro-batches that are built ahead"),
    "lr_scheduler_kwargs": ("schedule.min_ratio", "a field each: schedule.min_ratio, power, gamma, step_size, ...; see --help"),
    "greater_is_better": ("", "nothing: the task knows which way each of its metrics improves"),
    "overwrite_output_dir": ("", "nothing: no run overwrites another; --output_dir names a new folder, --resume auto continues"),
    "logging_steps log_interval logging_strategy logging_first_step": ("", "nothing: every step is a line of metrics.jsonl"),
    "do_train remove_unused_columns ddp_find_unused_parameters": ("", "nothing: it needs no setting here"),
    "template chat_template prompt_template": ("", "nothing: it is the tokenizer's own; --preview 1 shows what it makes"),
    "push_to_hub hub_model_id": ("", "nothing: a run leaves a Hugging Face folder, OUTPUT_DIR/export, for you to upload"),
    "finetuning_type adapter use_peft use_lora peft_config tuner_type train_type peft_type": ("tuning.name", "full or lora; the other fields of tuning say which adapters"),
    "qlora load_in_4bit load_in_8bit quantization_bit quantization": (
        "", "weights in 16 or 32 bits: quantised ones are not offered yet (--tuning.name lora freezes them in 16)",
    ),
}  # fmt: skip
"""Names of others -> the field for it here, if there is one, and what that takes."""

VALUES = {"cuda": "gpu nvidia", "fp32": "float32 float single", "bf16": "bfloat16", "fp16": "float16 half"}
"""Words of a choice here -> what others call them."""

_SAME = {name: ours for ours, names in SAME.items() for name in names.split()}
_VALUES = {name: ours for ours, names in VALUES.items() for name in names.split()}
_OTHER = {name: answer for names, answer in OTHER.items() for name in names.split()}


def answer(name: str) -> tuple[str, str] | None:
    """(field or option here, what it takes) for another trainer's `name`, which may have a section before it.

    The field is empty where there is none; what it takes is empty where it is the same as there.
    """
    last = name.rpartition(".")[2].lower()
    if last in _SAME:
        return _SAME[last], ""
    if last.startswith("lora_"):
        return "tuning.name", "lora; --help lists the fields of tuning"
    return _OTHER.get(last)


def synonym(name: str, value: str) -> RecipeError | None:
    """The message for a flag --`name` with `value` that has another name here."""
    found = answer(name)
    if found is None or found[0] == name:
        return None
    ours, takes = found
    if not ours:
        return RecipeError(f"unknown flag --{name}", expected=takes, do=f"leave out --{name}")
    return RecipeError(
        f"unknown flag --{name}: here it is --{ours}",
        expected=takes or f"--{ours}, for the same values",
        do=f"pass --{ours} {value or '...'}" if not takes else f"pass --{ours}; see --help for every field",
    )


def choice_meant(word: str, choices: Sequence[str]) -> str:
    """`" (did you mean 'cuda'?)"` for `word`, which is none of `choices`; empty where nothing is like it."""
    ours = _VALUES.get(word.lower(), "")
    return f" (did you mean {ours!r}?)" if ours in choices else did_you_mean(word, choices)
