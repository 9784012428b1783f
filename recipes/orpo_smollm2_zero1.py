"""Teach SmolLM2-135M-Instruct good answers about the Python standard library and how spoilt ones differ, on two processes.

deepspeed -q --num_gpus 2 recipes/orpo_smollm2_zero1.py
accelerate launch --config_file ds_configs/orpo_smollm2_zero1.yaml recipes/orpo_smollm2_zero1.py
"""

from toolkit import (
    ORPO,
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
    note="Odds ratio preference optimization of all weights: answers and preferences are learned at once, without a reference. ZeRO-1.",
    model=Model(path="smollm2-135m-instruct"),
    data=Data(train="docstring-preferences", evaluation="docstring-preferences"),
    task=ORPO(sample_prompt="What does the Python function `os.path.join` do?", beta=0.2),
    batch=Batch(global_size=4, micro_size=1, sequence_length=512),
    optimizer=Optimizer(learning_rate=5e-5, weight_decay=0.01),
    schedule=Schedule(type="linear", warmup_steps=3),
    precision=Precision(dtype="auto"),
    parallel=Parallel(zero_stage=1),
    checkpoint=Checkpoint(every_steps=10),
    evaluation=Evaluation(every_steps=10, max_sequences=16),
    launch=Launch(devices=2),
    steps=20,
)

if __name__ == "__main__":
    main(recipe)
