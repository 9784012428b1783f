"""Teach SmolLM2-135M-Instruct from single answers about the Python standard library, marked good or bad, on two processes.

deepspeed -q --num_gpus 2 recipes/kto_smollm2_zero2.py
accelerate launch --config_file ds_configs/kto_smollm2_zero2.yaml recipes/kto_smollm2_zero2.py
"""

from toolkit import (
    KTO,
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
    note="Kahneman-Tversky optimization: answers are good or bad, not paired; adapters, ZeRO-2, packed.",
    model=Model(path="smollm2-135m-instruct"),
    data=Data(train="docstring-feedback", evaluation="docstring-feedback"),
    task=KTO(sample_prompt="What does the Python function `os.path.join` do?"),
    tuning=LoRA(rank=16),
    batch=Batch(global_size=4, micro_size=1, sequence_length=256),
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
