"""Teach BERT to find answers in Wikipedia, or to say that there is none.

deepspeed -q --num_gpus 2 recipes/qa_bert_squad_zero2.py
accelerate launch --config_file ds_configs/qa_bert_squad_zero2.yaml recipes/qa_bert_squad_zero2.py
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
    note="SQuAD 2.0 in bf16, windows of 384 tokens, ZeRO-2, 2 GPUs.",
    model=Model(path="google-bert/bert-base-uncased"),
    data=Data(
        train="rajpurkar/squad_v2",
        evaluation="rajpurkar/squad_v2",
        evaluation_split="validation",
        packing=False,
        overlong="split",
    ),
    task=QuestionAnswering(unanswerable=True),
    batch=Batch(global_size=48, micro_size=24, sequence_length=384),
    optimizer=Optimizer(learning_rate=5e-5, weight_decay=0.01),
    schedule=Schedule(type="linear", warmup_steps=500),
    precision=Precision(dtype="bf16"),
    parallel=Parallel(zero_stage=2),
    checkpoint=Checkpoint(every_steps=1000, keep_best=True),
    evaluation=Evaluation(every_steps=1000, metric="f1"),
    launch=Launch(devices=2, device="cuda"),
    epochs=2.0,
)

if __name__ == "__main__":
    main(recipe)
