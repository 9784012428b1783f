"""Teach BERT to find persons, places and organisations in the news.

deepspeed -q --num_gpus 2 recipes/tag_bert_conll_zero1.py
accelerate launch --config_file ds_configs/tag_bert_conll_zero1.yaml recipes/tag_bert_conll_zero1.py
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
    note="Named entities of CoNLL 2003 in bf16, ZeRO-1, 2 GPUs.",
    model=Model(path="google-bert/bert-base-cased"),
    data=Data(
        train="eriktks/conll2003",
        evaluation="eriktks/conll2003",
        evaluation_split="validation",
        packing=False,
        overlong="split",
    ),
    task=TokenClassification(words_field="tokens", labels_field="ner_tags"),
    batch=Batch(global_size=32, micro_size=16, sequence_length=256),
    optimizer=Optimizer(learning_rate=5e-5, weight_decay=0.01),
    schedule=Schedule(type="linear", warmup_steps=100),
    precision=Precision(dtype="bf16"),
    parallel=Parallel(zero_stage=1),
    checkpoint=Checkpoint(every_steps=400, keep_best=True),
    evaluation=Evaluation(every_steps=400, metric="f1"),
    launch=Launch(devices=2, device="cuda"),
    epochs=3.0,
)

if __name__ == "__main__":
    main(recipe)
