"""Fine-tune T5 to translate English news into German.

deepspeed -q --num_gpus 2 recipes/translate_t5_wmt_zero2.py
accelerate launch --config_file ds_configs/translate_t5_wmt_zero2.yaml recipes/translate_t5_wmt_zero2.py
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
    note="WMT 2016 in bf16, ZeRO-2, 2 GPUs; BLEU and chrF by beam search.",
    model=Model(path="google-t5/t5-base"),
    data=Data(
        train="wmt/wmt16",
        evaluation="wmt/wmt16",
        evaluation_split="validation",
        subset="de-en",
        max_examples=1_000_000,
        packing=False,
        overlong="drop",
    ),
    task=Seq2Seq(
        source_language="en",
        target_language="de",
        source_prefix="translate English to German: ",
        scores=("bleu", "chrf"),
        num_beams=4,
    ),
    batch=Batch(global_size=256, micro_size=32, sequence_length=128),
    optimizer=Optimizer(learning_rate=3e-4),
    schedule=Schedule(type="linear", warmup_steps=200),
    precision=Precision(dtype="bf16"),
    parallel=Parallel(zero_stage=2),
    checkpoint=Checkpoint(every_steps=1000, keep_best=True),
    evaluation=Evaluation(every_steps=1000, max_sequences=512, metric="bleu"),
    launch=Launch(devices=2, device="cuda"),
    epochs=1.0,
)

if __name__ == "__main__":
    main(recipe)
