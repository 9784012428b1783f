"""Make a reward model of SmolLM2-135M-Instruct that tells good answers about the Python library from spoilt ones, on two processes.

deepspeed -q --num_gpus 2 recipes/reward_smollm2_zero3.py
accelerate launch --config_file ds_configs/reward_smollm2_zero3.yaml recipes/reward_smollm2_zero3.py
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
    RewardModel,
    Schedule,
    main,
)

recipe = Recipe(
    note="A reward model, all weights, ZeRO-3: pairs packed; the export is a sequence classifier with one output.",
    model=Model(path="smollm2-135m-instruct"),
    data=Data(train="docstring-preferences", evaluation="docstring-preferences"),
    task=RewardModel(centering=0.01),
    batch=Batch(global_size=4, micro_size=1, sequence_length=512),
    optimizer=Optimizer(learning_rate=5e-5, weight_decay=0.01),
    schedule=Schedule(type="linear", warmup_steps=3),
    precision=Precision(dtype="auto"),
    parallel=Parallel(zero_stage=3),
    checkpoint=Checkpoint(every_steps=10, keep_best=True),
    evaluation=Evaluation(every_steps=10, max_sequences=16, metric="rewards/accuracies"),
    launch=Launch(devices=2),
    steps=20,
)

if __name__ == "__main__":
    main(recipe)
