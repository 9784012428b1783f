"""Teach MiniLM to find answers in the documentation of Python's library.

deepspeed -q --num_gpus 2 recipes/qa_minilm_docstrings_zero3.py
accelerate launch --config_file ds_configs/qa_minilm_docstrings_zero3.yaml recipes/qa_minilm_docstrings_zero3.py
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
    QuestionAnswering,
    Recipe,
    Schedule,
    main,
)

recipe = Recipe(
    note="Extractive question answering in fp32, windows over long pages, ZeRO-3, exact match and F1 of answers.",
    model=Model(path="minilm-l6", dropout=0.1),
    data=Data(train="docstring-questions", evaluation="docstring-questions", packing=False, overlong="split"),
    task=QuestionAnswering(doc_stride=48),
    batch=Batch(global_size=32, micro_size=8, sequence_length=192),
    optimizer=Optimizer(learning_rate=3e-4, weight_decay=0.01),
    schedule=Schedule(type="linear", warmup_steps=15),
    precision=Precision(dtype="fp32"),
    parallel=Parallel(zero_stage=3),
    checkpoint=Checkpoint(every_steps=75, keep_best=True),
    evaluation=Evaluation(every_steps=75, max_sequences=300, metric="f1"),
    launch=Launch(devices=2),
    steps=150,
)

if __name__ == "__main__":
    main(recipe)
