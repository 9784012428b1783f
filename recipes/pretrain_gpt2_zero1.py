"""Continue the pretraining of GPT-2 on plain text of your own, on one host with 4 GPUs.

deepspeed -q --num_gpus 4 recipes/pretrain_gpt2_zero1.py
accelerate launch --config_file ds_configs/pretrain_gpt2_zero1.yaml recipes/pretrain_gpt2_zero1.py
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
    note="Continued pretraining: every token is trained, long texts become several examples, documents stay apart.",
    model=Model(path="openai-community/gpt2"),
    data=Data(train="data/texts.jsonl", evaluation="data/held_out.jsonl", overlong="split"),
    batch=Batch(global_size=64, micro_size=8, sequence_length=1024),
    optimizer=Optimizer(learning_rate=1e-4, weight_decay=0.1, betas=(0.9, 0.95)),
    schedule=Schedule(type="cosine", warmup_steps=100, min_ratio=0.1),
    precision=Precision(dtype="bf16"),
    parallel=Parallel(zero_stage=1),
    checkpoint=Checkpoint(every_steps=500, keep=2),
    evaluation=Evaluation(every_steps=500, max_sequences=512),
    launch=Launch(devices=4, device="cuda"),
    epochs=1.0,
)

if __name__ == "__main__":
    main(recipe)
