"""Fine-tune an 8B model with low-rank adapters on one host with 8 GPUs, or on one: --num_gpus 1 --launch.devices 1.

deepspeed -q --num_gpus 8 recipes/lora_llama8b_zero3.py
accelerate launch --config_file ds_configs/lora_llama8b_zero3.yaml recipes/lora_llama8b_zero3.py
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
    note="8B, LoRA, ZeRO-3: the frozen weights are spread over the devices too.",
    model=Model(path="meta-llama/Llama-3.1-8B-Instruct", activation_checkpointing=True),
    data=Data(train="data/train.jsonl", evaluation="data/test.jsonl"),
    tuning=LoRA(rank=16, alpha=32.0),
    batch=Batch(global_size=32, micro_size=1, sequence_length=8192),
    optimizer=Optimizer(learning_rate=2e-4),
    schedule=Schedule(type="cosine", warmup_steps=20, min_ratio=0.1),
    precision=Precision(dtype="bf16"),
    parallel=Parallel(zero_stage=3),
    checkpoint=Checkpoint(every_steps=200, keep=2, keep_best=True),
    evaluation=Evaluation(every_steps=200, max_sequences=256),
    launch=Launch(devices=8, device="cuda"),
    epochs=1.0,
)

if __name__ == "__main__":
    main(recipe)
