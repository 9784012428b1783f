"""Teach EfficientNet-Lite0, which knows ImageNet, to tell clothes apart.

deepspeed -q --num_gpus 2 recipes/images_efficientnet_fashion_zero1.py
accelerate launch --config_file ds_configs/images_efficientnet_fashion_zero1.yaml recipes/images_efficientnet_fashion_zero1.py
"""

from toolkit import (
    Batch,
    Checkpoint,
    Data,
    Evaluation,
    ImageClassification,
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
    note="Fine-tuning of a pretrained image classifier in fp32, ZeRO-1, mirror images, batch norm that soon follows the new images, held-out accuracy.",
    model=Model(path="efficientnet-lite0", config={"batch_norm_momentum": 0.2}),
    data=Data(train="fashion-mnist", evaluation="fashion-mnist", packing=False),
    task=ImageClassification(image_size=64, random_crop="none"),
    batch=Batch(global_size=32, micro_size=16),
    optimizer=Optimizer(learning_rate=3e-3, weight_decay=0.01),
    schedule=Schedule(type="cosine", warmup_steps=4),
    precision=Precision(dtype="fp32"),
    parallel=Parallel(zero_stage=1),
    checkpoint=Checkpoint(export_dtype="fp32"),
    evaluation=Evaluation(max_sequences=500),
    launch=Launch(devices=2),
    steps=40,
)

if __name__ == "__main__":
    main(recipe)
