"""Teach two halves of MiniLM to write the title of a Debian package from its description.

deepspeed -q --num_gpus 2 recipes/summarize_bert2bert_debian_zero2.py
accelerate launch --config_file ds_configs/summarize_bert2bert_debian_zero2.yaml recipes/summarize_bert2bert_debian_zero2.py
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
    Seq2Seq,
    main,
)

recipe = Recipe(
    note="Summarisation by an encoder and a decoder that start as MiniLM, in fp32, ZeRO-2: ROUGE of generated titles.",
    model=Model(path="minilm-bert2bert", dropout=0.1),
    data=Data(train="debian-summaries", evaluation="debian-summaries", packing=False, overlong="truncate"),
    task=Seq2Seq(
        source_field="text",
        target_field="summary",
        target_length=32,
        scores=("rouge",),
        num_beams=2,
        max_new_tokens=20,
    ),
    batch=Batch(global_size=32, micro_size=16, sequence_length=128),
    optimizer=Optimizer(learning_rate=5e-4, weight_decay=0.01),
    schedule=Schedule(type="cosine", warmup_steps=20),
    precision=Precision(dtype="fp32"),
    parallel=Parallel(zero_stage=2),
    checkpoint=Checkpoint(every_steps=150, keep_best=True),
    evaluation=Evaluation(every_steps=150, max_sequences=64, metric="rougeL"),
    launch=Launch(devices=2),
    steps=300,
)

if __name__ == "__main__":
    main(recipe)
