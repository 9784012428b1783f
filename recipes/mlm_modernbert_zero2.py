"""Continue the pretraining of ModernBERT on plain text, packed.

deepspeed -q --num_gpus 4 recipes/mlm_modernbert_zero2.py
accelerate launch --config_file ds_configs/mlm_modernbert_zero2.yaml recipes/mlm_modernbert_zero2.py
"""

from toolkit import (
    Batch,
    Checkpoint,
    Data,
    Evaluation,
    Launch,
    MaskedLM,
    Model,
    Optimizer,
    Parallel,
    Precision,
    Recipe,
    Schedule,
    main,
)

recipe = Recipe(
    note="Masked language modelling in bf16, packed, 30 percent of the tokens hidden, ZeRO-2, 4 GPUs.",
    model=Model(path="answerdotai/ModernBERT-base"),
    data=Data(
        train="Salesforce/wikitext",
        evaluation="Salesforce/wikitext",
        evaluation_split="validation",
        subset="wikitext-103-raw-v1",
        overlong="split",
    ),
    task=MaskedLM(mask_probability=0.3, sample_prompt="The capital of France is [MASK]."),
    batch=Batch(global_size=256, micro_size=16, sequence_length=1024),
    optimizer=Optimizer(learning_rate=3e-4, weight_decay=1e-5, betas=(0.9, 0.98)),
    schedule=Schedule(type="warmup_stable_decay", warmup_steps=200, decay_steps=400),
    precision=Precision(dtype="bf16"),
    parallel=Parallel(zero_stage=2),
    checkpoint=Checkpoint(every_steps=500, keep=2),
    evaluation=Evaluation(every_steps=500, max_sequences=1024),
    launch=Launch(devices=4, device="cuda"),
    steps=2000,
)

if __name__ == "__main__":
    main(recipe)
