"""Teach a small transformer, a module of one's own, to tell hidden residues of protein sequences.

deepspeed -q --num_gpus 2 recipes/mlm_residues_zero1.py
accelerate launch --config_file ds_configs/mlm_residues_zero1.yaml recipes/mlm_residues_zero1.py
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
    note="Masked residues in fp32, hidden anew in each pass, ZeRO-1; module, data and loss: toolkit/examples/residues.py.",
    data=Data(train="own", evaluation="own", packing=False),
    task=Custom(target="toolkit.examples.residues:MaskedResidues", arguments={"width": 64, "depth": 2}),
    batch=Batch(global_size=64, micro_size=32),
    optimizer=Optimizer(learning_rate=3e-3, weight_decay=0.01),
    schedule=Schedule(type="cosine", warmup_steps=50, min_ratio=0.05),
    precision=Precision(dtype="fp32"),
    parallel=Parallel(zero_stage=1),
    checkpoint=Checkpoint(every_steps=300),
    evaluation=Evaluation(every_steps=300),
    launch=Launch(devices=2),
    steps=700,
)

if __name__ == "__main__":
    main(recipe)
