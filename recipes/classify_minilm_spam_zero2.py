"""Teach MiniLM to tell spam from ham by the text of a mail.

deepspeed -q --num_gpus 2 recipes/classify_minilm_spam_zero2.py
accelerate launch --config_file ds_configs/classify_minilm_spam_zero2.yaml recipes/classify_minilm_spam_zero2.py
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
    note="Sequence classification of mails in fp32, ZeRO-2, dropout, held-out accuracy, F1 and Matthews' correlation.",
    model=Model(path="minilm-l6", dropout=0.1),
    data=Data(train="spamassassin", evaluation="spamassassin", packing=False),
    task=SequenceClassification(sample_prompt="You have been chosen! Click here to claim your free prize today."),
    batch=Batch(global_size=32, micro_size=16, sequence_length=128),
    optimizer=Optimizer(learning_rate=2e-4, weight_decay=0.01),
    schedule=Schedule(type="cosine", warmup_steps=8),
    precision=Precision(dtype="fp32"),
    parallel=Parallel(zero_stage=2),
    checkpoint=Checkpoint(every_steps=40, keep_best=True),
    evaluation=Evaluation(every_steps=40, max_sequences=400, metric="f1_macro"),
    launch=Launch(devices=2),
    steps=120,
)

if __name__ == "__main__":
    main(recipe)
