"""Fine-tune Qwen2.5-VL-7B on visual conversations with low-rank adapters in its language model, on one GPU of 80 GB.

deepspeed -q --num_gpus 1 recipes/vlm_qwen2_5_vl_7b_lora_zero2.py
accelerate launch --config_file ds_configs/vlm_qwen2_5_vl_7b_lora_zero2.yaml recipes/vlm_qwen2_5_vl_7b_lora_zero2.py
"""

from toolkit import (
    Batch,
    Checkpoint,
    Data,
    Evaluation,
    ImageTextToText,
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
    note="8B vision-language, LoRA in the language model, one GPU; images in the parts of messages, packed.",
    model=Model(path="Qwen/Qwen2.5-VL-7B-Instruct", activation_checkpointing=True),
    data=Data(
        train="HuggingFaceH4/llava-instruct-mix-vsft",
        evaluation="HuggingFaceH4/llava-instruct-mix-vsft",
        overlong="drop",
        unreadable="skip",
    ),
    task=ImageTextToText(),
    tuning=LoRA(rank=64, alpha=128.0, dropout=0.05),
    batch=Batch(global_size=16, micro_size=1, sequence_length=8192),
    optimizer=Optimizer(learning_rate=1e-4),
    schedule=Schedule(type="cosine", warmup_steps=50, min_ratio=0.1),
    precision=Precision(dtype="bf16"),
    parallel=Parallel(zero_stage=2),
    checkpoint=Checkpoint(every_steps=200, keep=2, merge=True),
    evaluation=Evaluation(every_steps=200, max_sequences=128),
    launch=Launch(devices=1, device="cuda"),
    epochs=1.0,
)

if __name__ == "__main__":
    main(recipe)
