"""Train a ResNet-18 from scratch to tell clothes apart.

deepspeed -q --num_gpus 2 recipes/images_resnet18_fashion_zero2.py
accelerate launch --config_file ds_configs/images_resnet18_fashion_zero2.yaml recipes/images_resnet18_fashion_zero2.py
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
    note="Image classification from scratch in fp32, ZeRO-2, shifted and mirrored images, a moving average of the weights.",
    model=Model(
        architecture="resnet",
        weights="random",
        config={
            "layer_type": "basic",
            "embedding_size": 64,
            "hidden_sizes": [64, 128, 256, 512],
            "depths": [2, 2, 2, 2],
        },
    ),
    data=Data(train="fashion-mnist", evaluation="fashion-mnist", packing=False),
    task=ImageClassification(
        image_size=32,
        image_mean=(0.286, 0.286, 0.286),
        image_std=(0.353, 0.353, 0.353),
        center_crop=1.0,
        random_crop="padded",
        crop_padding=2,
    ),
    batch=Batch(global_size=128, micro_size=64),
    optimizer=Optimizer(type="sgd_momentum", learning_rate=0.1, weight_decay=5e-4, ema_decay=0.99, nesterov=True),
    schedule=Schedule(type="cosine", warmup_steps=100),
    precision=Precision(dtype="fp32"),
    parallel=Parallel(zero_stage=2),
    checkpoint=Checkpoint(export_dtype="fp32"),
    evaluation=Evaluation(every_steps=200, max_sequences=2000),
    launch=Launch(devices=2),
    steps=600,
)

if __name__ == "__main__":
    main(recipe)
