"""Pretrain a 1B Llama from a stream of text on one host with 8 GPUs.

deepspeed -q --num_gpus 8 recipes/pretrain_llama1b_zero2.py
accelerate launch --config_file ds_configs/pretrain_llama1b_zero2.yaml recipes/pretrain_llama1b_zero2.py
"""

from toolkit import Batch, Checkpoint, Data, Launch, Model, Optimizer, Parallel, Precision, Recipe, Schedule, main

recipe = Recipe(
    note="1B pretraining from a stream, ZeRO-2, bf16, 8 GPUs, about one million tokens per step.",
    model=Model(
        architecture="llama",
        weights="random",
        tokenizer="HuggingFaceTB/SmolLM2-1.7B",
        attention="flash_attention_2",
        config={
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": True,
        },
    ),
    data=Data(train="HuggingFaceFW/fineweb-edu", subset="sample-10BT", streaming=True, overlong="split"),
    batch=Batch(global_size=256, micro_size=4, sequence_length=4096),
    optimizer=Optimizer(learning_rate=3e-4, weight_decay=0.1, betas=(0.9, 0.95)),
    schedule=Schedule(type="warmup_stable_decay", warmup_steps=500, decay_steps=2000),
    precision=Precision(dtype="bf16"),
    parallel=Parallel(zero_stage=2, reduce_bucket_size=200_000_000, overlap_comm=True),
    checkpoint=Checkpoint(every_steps=500),
    launch=Launch(devices=8, device="cuda"),
    steps=10_000,
)

if __name__ == "__main__":
    main(recipe)
