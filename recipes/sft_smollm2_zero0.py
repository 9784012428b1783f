"""The quick start in fp32 on one process, every state on it: the reference the other strategies are compared with.

deepspeed -q --num_gpus 1 recipes/sft_smollm2_zero0.py
accelerate launch --config_file ds_configs/sft_smollm2_zero0.yaml recipes/sft_smollm2_zero0.py
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
    note="Supervised fine-tuning in fp32 on one device, no ZeRO.",
    model=Model(path="smollm2-135m-instruct"),
    data=Data(train="python-docstrings", evaluation="python-docstrings"),
    task=CausalLM(sample_prompt="What does the Python function `os.path.join` do?"),
    batch=Batch(global_size=4, micro_size=2, sequence_length=512),
    optimizer=Optimizer(learning_rate=1e-4, weight_decay=0.01),
    schedule=Schedule(type="linear", warmup_steps=3),
    precision=Precision(dtype="fp32"),
    parallel=Parallel(zero_stage=0),
    checkpoint=Checkpoint(every_steps=10),
    evaluation=Evaluation(max_sequences=32),
    launch=Launch(devices=1),
    steps=20,
)

if __name__ == "__main__":
    main(recipe)
