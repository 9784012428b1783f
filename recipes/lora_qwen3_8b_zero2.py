"""Fine-tune Qwen3-8B with low-rank adapters on one GPU of 80 GB; the export is one model with the adapters merged in.

deepspeed -q --num_gpus 1 recipes/lora_qwen3_8b_zero2.py
accelerate launch --config_file ds_configs/lora_qwen3_8b_zero2.yaml recipes/lora_qwen3_8b_zero2.py
"""

from toolkit import (
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
    note="8B, LoRA with rank-stabilised scaling, one GPU; chats with tools and reasoning as Qwen3's template has them.",
    model=Model(path="Qwen/Qwen3-8B", activation_checkpointing=True),
    data=Data(train="data/train.jsonl", evaluation="data/test.jsonl"),
    tuning=LoRA(rank=64, alpha=16.0, use_rslora=True),
    batch=Batch(global_size=16, micro_size=1, sequence_length=8192),
    optimizer=Optimizer(learning_rate=1e-4),
    schedule=Schedule(type="cosine", warmup_steps=20, min_ratio=0.1),
    precision=Precision(dtype="bf16"),
    parallel=Parallel(zero_stage=2),
    checkpoint=Checkpoint(every_steps=200, keep=2, merge=True),
    evaluation=Evaluation(every_steps=200, max_sequences=256),
    launch=Launch(devices=1, device="cuda"),
    epochs=1.0,
)

if __name__ == "__main__":
    main(recipe)
