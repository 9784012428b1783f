"""Train a small Llama from scratch on plain text.

deepspeed -q --num_gpus 2 recipes/pretrain_llama10m_zero1.py
accelerate launch --config_file ds_configs/pretrain_llama10m_zero1.yaml recipes/pretrain_llama10m_zero1.py
"""

from toolkit import Batch, Data, Launch, Model, Optimizer, Parallel, Precision, Recipe, Schedule, main

recipe = Recipe(
    note="Pretraining from scratch: plain text cut to the sequence length, warmup-stable-decay, ZeRO-1.",
    model=Model(
        architecture="llama",
        weights="random",
        tokenizer="smollm2-135m-instruct",
        config={
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "tie_word_embeddings": True,
        },
    ),
    data=Data(train="python-packages", evaluation="python-packages", overlong="split"),
    batch=Batch(global_size=8, micro_size=2, sequence_length=256),
    optimizer=Optimizer(learning_rate=3e-3, weight_decay=0.1, betas=(0.9, 0.95)),
    schedule=Schedule(type="warmup_stable_decay", warmup_steps=10),
    precision=Precision(dtype="auto"),
    parallel=Parallel(zero_stage=1),
    launch=Launch(devices=2),
    steps=100,
)

if __name__ == "__main__":
    main(recipe)
