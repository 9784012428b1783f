"""Teach a small vision-language model to answer questions about pictures of coloured shapes.

deepspeed -q --num_gpus 2 recipes/vlm_smolvlm_tiny_zero2.py
accelerate launch --config_file ds_configs/vlm_smolvlm_tiny_zero2.yaml recipes/vlm_smolvlm_tiny_zero2.py
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
    note="Vision-language tuning in fp32, ZeRO-2: tower, projector and language model from scratch, packed, exact match.",
    model=Model(path="smolvlm-tiny"),
    data=Data(train="rendered-captions", evaluation="rendered-captions"),
    task=ImageTextToText(freeze_vision_tower=False, scores=("exact_match",), max_new_tokens=24),
    batch=Batch(global_size=4, micro_size=2, sequence_length=512),
    optimizer=Optimizer(learning_rate=2e-3, weight_decay=0.05, betas=(0.9, 0.95)),
    schedule=Schedule(type="cosine", warmup_steps=20),
    precision=Precision(dtype="fp32"),
    parallel=Parallel(zero_stage=2),
    checkpoint=Checkpoint(every_steps=300, keep_best=True),
    evaluation=Evaluation(every_steps=300, metric="exact_match"),
    launch=Launch(devices=2),
    steps=600,
)

if __name__ == "__main__":
    main(recipe)
