"""Teach ModernBERT whether one sentence follows from another.

deepspeed -q --num_gpus 2 recipes/classify_modernbert_mnli_zero1.py
accelerate launch --config_file ds_configs/classify_modernbert_mnli_zero1.yaml recipes/classify_modernbert_mnli_zero1.py
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
    SequenceClassification,
    main,
)

recipe = Recipe(
    note="Classification of pairs of texts in bf16, ZeRO-1, 2 GPUs.",
    model=Model(path="answerdotai/ModernBERT-base"),
    data=Data(
        train="nyu-mll/glue",
        evaluation="nyu-mll/glue",
        evaluation_split="validation_matched",
        subset="mnli",
        packing=False,
    ),
    task=SequenceClassification(text_field="premise", second_text_field="hypothesis"),
    batch=Batch(global_size=64, micro_size=32, sequence_length=256),
    optimizer=Optimizer(learning_rate=5e-5, weight_decay=5e-6, betas=(0.9, 0.98)),
    schedule=Schedule(type="linear", warmup_steps=500),
    precision=Precision(dtype="bf16"),
    parallel=Parallel(zero_stage=1),
    checkpoint=Checkpoint(every_steps=2000, keep_best=True),
    evaluation=Evaluation(every_steps=2000, metric="accuracy"),
    launch=Launch(devices=2, device="cuda"),
    epochs=1.0,
)

if __name__ == "__main__":
    main(recipe)
