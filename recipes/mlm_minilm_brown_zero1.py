"""Teach MiniLM, a sentence encoder, to tell hidden words of American prose.

deepspeed -q --num_gpus 2 recipes/mlm_minilm_brown_zero1.py
accelerate launch --config_file ds_configs/mlm_minilm_brown_zero1.yaml recipes/mlm_minilm_brown_zero1.py
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
    note="Masked language modelling of whole words in fp32, packed, ZeRO-1; the checkpoint has no such head.",
    model=Model(path="minilm-l6", dropout=0.0),
    data=Data(train="brown-corpus", evaluation="brown-corpus", overlong="split"),
    task=MaskedLM(whole_word=True, sample_prompt="The judge sent the jury [MASK] before the trial."),
    batch=Batch(global_size=32, micro_size=8, sequence_length=128),
    optimizer=Optimizer(learning_rate=5e-4, weight_decay=0.01),
    schedule=Schedule(type="linear", warmup_steps=20),
    precision=Precision(dtype="fp32"),
    parallel=Parallel(zero_stage=1),
    checkpoint=Checkpoint(every_steps=75),
    evaluation=Evaluation(every_steps=75, max_sequences=200),
    launch=Launch(devices=2),
    steps=150,
)

if __name__ == "__main__":
    main(recipe)
