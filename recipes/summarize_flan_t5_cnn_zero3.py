"""Fine-tune FLAN-T5 to summarise news.

deepspeed -q --num_gpus 4 recipes/summarize_flan_t5_cnn_zero3.py
accelerate launch --config_file ds_configs/summarize_flan_t5_cnn_zero3.yaml recipes/summarize_flan_t5_cnn_zero3.py
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
    note="CNN / Daily Mail in bf16, ZeRO-3, 4 GPUs; ROUGE by beam search.",
    model=Model(path="google/flan-t5-xl", activation_checkpointing=True),
    data=Data(
        train="abisee/cnn_dailymail",
        evaluation="abisee/cnn_dailymail",
        evaluation_split="validation",
        subset="3.0.0",
        packing=False,
        overlong="truncate",
    ),
    task=Seq2Seq(
        source_field="article",
        target_field="highlights",
        source_prefix="summarize: ",
        scores=("rouge",),
        num_beams=4,
    ),
    batch=Batch(global_size=64, micro_size=4, sequence_length=1024),
    optimizer=Optimizer(learning_rate=1e-4),
    schedule=Schedule(type="linear", warmup_steps=100),
    precision=Precision(dtype="bf16"),
    parallel=Parallel(zero_stage=3),
    checkpoint=Checkpoint(every_steps=500, keep_best=True),
    evaluation=Evaluation(every_steps=500, max_sequences=256, metric="rougeL"),
    launch=Launch(devices=4, device="cuda"),
    epochs=1.0,
)

if __name__ == "__main__":
    main(recipe)
