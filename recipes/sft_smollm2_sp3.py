"""The quick start with each sequence spread over three processes, for contexts that do not fit one.

deepspeed -q --num_gpus 3 recipes/sft_smollm2_sp3.py
accelerate launch --config_file ds_configs/sft_smollm2_sp3.yaml recipes/sft_smollm2_sp3.py
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
    note="Supervised fine-tuning on long sequences, Ulysses sequence parallelism with ZeRO-3, bf16.",
    model=Model(path="smollm2-135m-instruct"),
    data=Data(train="python-docstrings", evaluation="python-docstrings"),
    task=CausalLM(sample_prompt="What does the Python function `os.path.join` do?"),
    batch=Batch(global_size=2, micro_size=1, sequence_length=1536),
    optimizer=Optimizer(learning_rate=1e-4, weight_decay=0.01),
    schedule=Schedule(type="cosine", warmup_steps=3),
    precision=Precision(dtype="bf16"),
    parallel=Parallel(zero_stage=3, sequence=3),
    checkpoint=Checkpoint(every_steps=10),
    evaluation=Evaluation(max_sequences=8),
    launch=Launch(devices=3),
    steps=20,
)

if __name__ == "__main__":
    main(recipe)
