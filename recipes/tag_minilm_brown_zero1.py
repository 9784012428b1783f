"""Teach MiniLM to mark names, titles and numbers in American prose.

deepspeed -q --num_gpus 2 recipes/tag_minilm_brown_zero1.py
accelerate launch --config_file ds_configs/tag_minilm_brown_zero1.yaml recipes/tag_minilm_brown_zero1.py
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
    TokenClassification,
    main,
)

recipe = Recipe(
    note="Token classification in fp32, ZeRO-1: entities as B- and I-, measured by whole entities.",
    model=Model(path="minilm-l6", dropout=0.1),
    data=Data(train="brown-names", evaluation="brown-names", packing=False, overlong="split"),
    task=TokenClassification(labels_field="tags", sample_prompt="Mayor William B. Hartsfield spoke in Atlanta ."),
    batch=Batch(global_size=32, micro_size=16, sequence_length=96),
    optimizer=Optimizer(learning_rate=3e-4, weight_decay=0.01),
    schedule=Schedule(type="cosine", warmup_steps=10),
    precision=Precision(dtype="fp32"),
    parallel=Parallel(zero_stage=1),
    checkpoint=Checkpoint(every_steps=75, keep_best=True),
    evaluation=Evaluation(every_steps=75, max_sequences=400, metric="f1"),
    launch=Launch(devices=2),
    steps=150,
)

if __name__ == "__main__":
    main(recipe)
