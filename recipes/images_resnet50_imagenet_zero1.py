"""Train a ResNet-50 from scratch on ImageNet, on 8 GPUs.

deepspeed -q --num_gpus 8 recipes/images_resnet50_imagenet_zero1.py
accelerate launch --config_file ds_configs/images_resnet50_imagenet_zero1.yaml recipes/images_resnet50_imagenet_zero1.py
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
    note="Image classification from scratch in bf16, ZeRO-1, mixup, CutMix, RandAugment, a moving average of the weights, 8 GPUs.",
    model=Model(path="microsoft/resnet-50", weights="random"),
    data=Data(
        train="ILSVRC/imagenet-1k",
        evaluation="ILSVRC/imagenet-1k",
        evaluation_split="validation",
        packing=False,
        unreadable="skip",
    ),
    task=ImageClassification(
        rand_augment=9,
        random_erasing=0.1,
        mixup_alpha=0.2,
        cutmix_alpha=1.0,
        label_smoothing=0.1,
        channels_last=True,
    ),
    batch=Batch(global_size=1024, micro_size=128),
    optimizer=Optimizer(type="sgd_momentum", learning_rate=0.5, weight_decay=2e-5, ema_decay=0.9999, nesterov=True),
    schedule=Schedule(type="cosine", warmup_steps=6256),
    precision=Precision(dtype="bf16"),
    parallel=Parallel(zero_stage=1),
    checkpoint=Checkpoint(every_steps=5000, keep_best=True),
    evaluation=Evaluation(every_steps=5000, metric="accuracy"),
    launch=Launch(devices=8, device="cuda"),
    epochs=100.0,
)

if __name__ == "__main__":
    main(recipe)
