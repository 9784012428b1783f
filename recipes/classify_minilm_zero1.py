"""Teach MiniLM which standard-library package a docstring belongs to.

deepspeed -q --num_gpus 2 recipes/classify_minilm_zero1.py
accelerate launch --config_file ds_configs/classify_minilm_zero1.yaml recipes/classify_minilm_zero1.py
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
    note="Sequence classification in fp32, ZeRO-1, dropout, label smoothing, early stopping on accuracy.",
    model=Model(path="minilm-l6", dropout=0.1),
    data=Data(train="python-packages", evaluation="python-packages", packing=False),
    task=SequenceClassification(
        label_smoothing=0.05,
        sample_prompt="Return the next event loop task that is waiting on a future.",
    ),
    batch=Batch(global_size=32, micro_size=16, sequence_length=128),
    optimizer=Optimizer(learning_rate=2e-4, weight_decay=0.01),
    schedule=Schedule(type="cosine", warmup_steps=5),
    precision=Precision(dtype="fp32"),
    parallel=Parallel(zero_stage=1),
    checkpoint=Checkpoint(every_steps=20, keep_best=True),
    evaluation=Evaluation(every_steps=20, metric="accuracy", early_stopping_patience=2),
    launch=Launch(devices=2),
    steps=80,
)

if __name__ == "__main__":
    main(recipe)
