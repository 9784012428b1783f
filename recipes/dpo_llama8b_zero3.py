"""Prefer chosen answers to rejected ones with an 8B model and low-rank adapters, on one host with 8 GPUs.

deepspeed -q --num_gpus 8 recipes/dpo_llama8b_zero3.py
accelerate launch --config_file ds_configs/dpo_llama8b_zero3.yaml recipes/dpo_llama8b_zero3.py
"""

from toolkit import (
    DPO,
    Batch,
    Checkpoint,
    Data,
    Evaluation,
    Launch,
    LoRA,
    Model,
    Optimizer,
    Parallel,
    Precision,
    Recipe,
    Schedule,
    main,
)

recipe = Recipe(
    note="8B, DPO with LoRA, ZeRO-3: the reference is the model without its adapters; pairs are packed whole.",
    model=Model(path="meta-llama/Llama-3.1-8B-Instruct", activation_checkpointing=True),
    data=Data(train="data/preferences.jsonl", evaluation="data/preferences_test.jsonl"),
    task=DPO(),
    tuning=LoRA(rank=16, alpha=32.0),
    batch=Batch(global_size=32, micro_size=1, sequence_length=8192),
    optimizer=Optimizer(learning_rate=5e-6),
    schedule=Schedule(type="cosine", warmup_steps=20, min_ratio=0.1),
    precision=Precision(dtype="bf16"),
    parallel=Parallel(zero_stage=3),
    checkpoint=Checkpoint(every_steps=200, keep=2),
    evaluation=Evaluation(every_steps=200, max_sequences=256),
    launch=Launch(devices=8, device="cuda"),
    epochs=1.0,
)

if __name__ == "__main__":
    main(recipe)
