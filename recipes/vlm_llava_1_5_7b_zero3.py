"""Instruction tuning of LLaVA-1.5-7B as its second stage was: language model and projector, the vision tower frozen.

deepspeed -q --num_gpus 8 recipes/vlm_llava_1_5_7b_zero3.py
accelerate launch --config_file ds_configs/vlm_llava_1_5_7b_zero3.yaml recipes/vlm_llava_1_5_7b_zero3.py
"""

from toolkit import (
    Batch,
    Checkpoint,
    Data,
    Evaluation,
    ImageTextToText,
    Launch,
    Model,
    Optimizer,
    Parallel,
    Precision,
    Recipe,
    Schedule,
    main,
)

recipe = Recipe(
    note="7B vision-language, all weights but the vision tower's, ZeRO-3 on eight GPUs; also rows without an image.",
    model=Model(path="llava-hf/llava-1.5-7b-hf", activation_checkpointing=True),
    data=Data(
        train="HuggingFaceH4/llava-instruct-mix-vsft",
        evaluation="HuggingFaceH4/llava-instruct-mix-vsft",
        overlong="drop",
        unreadable="skip",
    ),
    task=ImageTextToText(),
    batch=Batch(global_size=64, micro_size=2, sequence_length=2048),
    optimizer=Optimizer(learning_rate=2e-5),
    schedule=Schedule(type="cosine", warmup_steps=100),
    precision=Precision(dtype="bf16"),
    parallel=Parallel(zero_stage=3),
    checkpoint=Checkpoint(every_steps=500, keep=2),
    evaluation=Evaluation(every_steps=500, max_sequences=256),
    launch=Launch(devices=8, device="cuda"),
    epochs=1.0,
)

if __name__ == "__main__":
    main(recipe)
