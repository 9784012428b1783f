"""The quick start with optimizer states and their update in host memory.

deepspeed -q --num_gpus 2 recipes/sft_smollm2_zero2_offload.py
accelerate launch --config_file ds_configs/sft_smollm2_zero2_offload.yaml recipes/sft_smollm2_zero2_offload.py
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
    note="Supervised fine-tuning, ZeRO-2, optimizer offloaded to the host.",
    model=Model(path="smollm2-135m-instruct"),
    data=Data(train="python-docstrings", evaluation="python-docstrings"),
    task=CausalLM(sample_prompt="What does the Python function `os.path.join` do?"),
    batch=Batch(global_size=4, micro_size=2, sequence_length=512),
    optimizer=Optimizer(learning_rate=1e-4, weight_decay=0.01),
    schedule=Schedule(type="linear", warmup_steps=3),
    precision=Precision(dtype="bf16"),
    parallel=Parallel(zero_stage=2, offload_optimizer="cpu"),
    checkpoint=Checkpoint(every_steps=10),
    evaluation=Evaluation(max_sequences=32),
    launch=Launch(devices=2),
    steps=20,
)

if __name__ == "__main__":
    main(recipe)
