"""The quick start in fp16 with a dynamic loss scale, for GPUs before Ampere.

deepspeed -q --num_gpus 2 recipes/sft_smollm2_zero1_fp16.py
accelerate launch --config_file ds_configs/sft_smollm2_zero1_fp16.yaml recipes/sft_smollm2_zero1_fp16.py
"""

from toolkit import (
    Batch,
    CausalLM,
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
    main,
)

recipe = Recipe(
    note="Supervised fine-tuning, ZeRO-1, fp16.",
    model=Model(path="smollm2-135m-instruct"),
    data=Data(train="python-docstrings", evaluation="python-docstrings"),
    task=CausalLM(sample_prompt="What does the Python function `os.path.join` do?"),
    batch=Batch(global_size=4, micro_size=2, sequence_length=512),
    optimizer=Optimizer(learning_rate=1e-4, weight_decay=0.01),
    schedule=Schedule(type="linear", warmup_steps=3),
    precision=Precision(dtype="fp16"),
    parallel=Parallel(zero_stage=1),
    checkpoint=Checkpoint(every_steps=10),
    evaluation=Evaluation(max_sequences=32),
    launch=Launch(devices=2),
    steps=20,
)

if __name__ == "__main__":
    main(recipe)
