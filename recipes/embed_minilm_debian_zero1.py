"""Teach MiniLM to find the description of a Debian package by its title.

deepspeed -q --num_gpus 2 recipes/embed_minilm_debian_zero1.py
accelerate launch --config_file ds_configs/embed_minilm_debian_zero1.yaml recipes/embed_minilm_debian_zero1.py
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
    SentenceEmbedding,
    main,
)

recipe = Recipe(
    note="Sentence embeddings in fp32, ZeRO-1: each title is compared with all descriptions of the global batch.",
    model=Model(path="minilm-l6", dropout=0.1),
    data=Data(train="debian-pairs", evaluation="debian-pairs", packing=False, overlong="truncate"),
    task=SentenceEmbedding(),
    batch=Batch(global_size=128, micro_size=32, sequence_length=96),
    optimizer=Optimizer(learning_rate=5e-5, weight_decay=0.01),
    schedule=Schedule(type="cosine", warmup_steps=10),
    precision=Precision(dtype="fp32"),
    parallel=Parallel(zero_stage=1),
    checkpoint=Checkpoint(every_steps=50, keep_best=True),
    evaluation=Evaluation(every_steps=50, max_sequences=1000, metric="mrr"),
    launch=Launch(devices=2),
    steps=100,
)

if __name__ == "__main__":
    main(recipe)
