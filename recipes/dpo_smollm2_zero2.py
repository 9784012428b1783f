"""Teach SmolLM2-135M-Instruct to tell good answers about the Python standard library from spoilt ones, on two processes.

deepspeed -q --num_gpus 2 recipes/dpo_smollm2_zero2.py
accelerate launch --config_file ds_configs/dpo_smollm2_zero2.yaml recipes/dpo_smollm2_zero2.py
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
    note="Direct preference optimization with adapters: the reference is the model without them. ZeRO-2, pairs packed.",
    model=Model(path="smollm2-135m-instruct"),
    data=Data(train="docstring-preferences", evaluation="docstring-preferences"),
    task=DPO(sample_prompt="What does the Python function `os.path.join` do?"),
    tuning=LoRA(rank=16),
    batch=Batch(global_size=8, micro_size=1, sequence_length=512),
    optimizer=Optimizer(learning_rate=2e-4, weight_decay=0.0),
    schedule=Schedule(type="cosine", warmup_steps=3),
    precision=Precision(dtype="auto"),
    parallel=Parallel(zero_stage=2),
    checkpoint=Checkpoint(every_steps=10),
    evaluation=Evaluation(every_steps=10, max_sequences=16),
    launch=Launch(devices=2),
    steps=20,
)

if __name__ == "__main__":
    main(recipe)
