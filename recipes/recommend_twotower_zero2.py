"""Train a two-tower recommender, a module of one's own, on the interactions of users with items.

deepspeed -q --num_gpus 2 recipes/recommend_twotower_zero2.py
accelerate launch --config_file ds_configs/recommend_twotower_zero2.yaml recipes/recommend_twotower_zero2.py
"""

from toolkit import (
    Batch,
    Checkpoint,
    Custom,
    Data,
    Evaluation,
    Launch,
    Optimizer,
    Parallel,
    Precision,
    Recipe,
    Schedule,
    main,
)

recipe = Recipe(
    note="Embedding tables and layers in fp32, ZeRO-2; module, data and loss: toolkit/examples/two_tower.py.",
    data=Data(train="own", evaluation="own", packing=False),
    task=Custom(target="toolkit.examples.two_tower:TwoTower", arguments={"users": 1500, "items": 500, "width": 32}),
    batch=Batch(global_size=256, micro_size=128),
    optimizer=Optimizer(learning_rate=4e-3, weight_decay=0.1),
    schedule=Schedule(type="cosine", warmup_steps=50, min_ratio=0.0),
    precision=Precision(dtype="fp32"),
    parallel=Parallel(zero_stage=2),
    checkpoint=Checkpoint(every_steps=400),
    evaluation=Evaluation(every_steps=400),
    launch=Launch(devices=2),
    steps=1100,
)

if __name__ == "__main__":
    main(recipe)
