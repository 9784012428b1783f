"""Fine-tune SmolLM2-135M-Instruct with low-rank adapters: 4 % of the weights are trained, the others stay as they are.

deepspeed -q --num_gpus 2 recipes/lora_smollm2_zero2.py
accelerate launch --config_file ds_configs/lora_smollm2_zero2.yaml recipes/lora_smollm2_zero2.py
"""

from toolkit import (
    Batch,
    CausalLM,
    Checkpoint,
    Data,
    Evaluation,
    Launch,
    LoRA,
    Model,
    Optimizer,
    Parallel,
    Precision,
    Recipe,
    Schedule,
    main,
)

recipe = Recipe(
    note="LoRA on every linear layer: the quick start's model and data with a tenth of its checkpoint, and adapters for peft.",
    model=Model(path="smollm2-135m-instruct"),
    data=Data(train="python-docstrings", evaluation="python-docstrings"),
    task=CausalLM(sample_prompt="What does the Python function `os.path.join` do?"),
    tuning=LoRA(rank=16, alpha=32.0),
    batch=Batch(global_size=4, micro_size=2, sequence_length=512),
    optimizer=Optimizer(learning_rate=2e-3),
    schedule=Schedule(type="linear", warmup_steps=3),
    precision=Precision(dtype="auto"),
    parallel=Parallel(zero_stage=2),
    checkpoint=Checkpoint(every_steps=10),
    evaluation=Evaluation(max_sequences=32),
    launch=Launch(devices=2),
    steps=20,
)

if __name__ == "__main__":
    main(recipe)
