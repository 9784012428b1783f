"""Fine-tune BGE to find the passage that answers a question.

deepspeed -q --num_gpus 2 recipes/embed_bge_nq_zero1.py
accelerate launch --config_file ds_configs/embed_bge_nq_zero1.yaml recipes/embed_bge_nq_zero1.py
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
    note="Natural Questions in bf16, ZeRO-1, 2 GPUs: 2048 passages are compared at a time, 64 fit a GPU.",
    model=Model(path="BAAI/bge-base-en-v1.5"),
    data=Data(
        train="sentence-transformers/natural-questions",
        evaluation_examples=2000,
        packing=False,
        overlong="truncate",
    ),
    task=SentenceEmbedding(
        anchor_field="query",
        positive_field="answer",
        anchor_prefix="Represent this sentence for searching relevant passages: ",
        pooling="cls",
        temperature=0.02,
    ),
    batch=Batch(global_size=2048, micro_size=64, sequence_length=512),
    optimizer=Optimizer(learning_rate=2e-5, weight_decay=0.01),
    schedule=Schedule(type="linear", warmup_steps=5),
    precision=Precision(dtype="bf16"),
    parallel=Parallel(zero_stage=1),
    checkpoint=Checkpoint(every_steps=20, keep_best=True),
    evaluation=Evaluation(every_steps=20, metric="mrr"),
    launch=Launch(devices=2, device="cuda"),
    epochs=1.0,
)

if __name__ == "__main__":
    main(recipe)
