"""Full fine-tuning of an 8B model on one host with 8 GPUs.

deepspeed -q --num_gpus 8 recipes/sft_llama8b_zero3.py
accelerate launch --config_file ds_configs/sft_llama8b_zero3.yaml recipes/sft_llama8b_zero3.py
"""

from toolkit import (
    Batch,
    Checkpoint,
    Data,
    Evaluation,
    Launch,
    Model,
    Optimizer,
    Parallel,
    Precision,
    Recipe,
    Schedule,
    main,
)

recipe = Recipe(
    note="8B full fine-tune, ZeRO-3, bf16, 8 x 80 GB.",
    model=Model(path="meta-llama/Llama-3.1-8B-Instruct", attention="flash_attention_2", activation_checkpointing=True),
    data=Data(train="data/train.jsonl", evaluation="data/test.jsonl"),
    batch=Batch(global_size=64, micro_size=1, sequence_length=8192),
    optimizer=Optimizer(learning_rate=1e-5, weight_decay=0.01, betas=(0.9, 0.95)),
    schedule=Schedule(type="cosine", warmup_steps=50, min_ratio=0.1),
    precision=Precision(dtype="bf16"),
    parallel=Parallel(zero_stage=3, reduce_bucket_size=200_000_000, overlap_comm=True),
    checkpoint=Checkpoint(every_steps=200, keep=2, keep_best=True),
    evaluation=Evaluation(every_steps=200, max_sequences=512),
    launch=Launch(devices=8, device="cuda"),
    epochs=2.0,
)

if __name__ == "__main__":
    main(recipe)
