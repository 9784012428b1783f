"""Fine-tune ViT-L/16 on ImageNet at 224 pixels, on 8 GPUs.

deepspeed -q --num_gpus 8 recipes/images_vit_l_imagenet_zero2.py
accelerate launch --config_file ds_configs/images_vit_l_imagenet_zero2.yaml recipes/images_vit_l_imagenet_zero2.py
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
    note="Fine-tuning of a pretrained vision transformer in bf16, ZeRO-2, recomputed activations, a moving average, 8 GPUs.",
    model=Model(path="google/vit-large-patch16-224-in21k", activation_checkpointing=True),
    data=Data(
        train="ILSVRC/imagenet-1k",
        evaluation="ILSVRC/imagenet-1k",
        evaluation_split="validation",
        packing=False,
        unreadable="skip",
    ),
    task=ImageClassification(
        crop_scale=(0.3, 1.0),
        rand_augment=9,
        random_erasing=0.25,
        mixup_alpha=0.8,
        cutmix_alpha=1.0,
        label_smoothing=0.1,
    ),
    batch=Batch(global_size=512, micro_size=64),
    optimizer=Optimizer(learning_rate=5e-5, weight_decay=0.05, ema_decay=0.9999),
    schedule=Schedule(type="cosine", warmup_steps=2500),
    precision=Precision(dtype="bf16"),
    parallel=Parallel(zero_stage=2),
    checkpoint=Checkpoint(every_steps=2500, keep_best=True),
    evaluation=Evaluation(every_steps=2500, metric="accuracy"),
    launch=Launch(devices=8, device="cuda"),
    epochs=10.0,
)

if __name__ == "__main__":
    main(recipe)
