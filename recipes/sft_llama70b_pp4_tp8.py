"""Full fine-tuning of a 70B model on four hosts with 8 GPUs each: tensor parallelism inside a host, a pipeline across them.

deepspeed -q --hostfile hostfile --num_nodes 4 recipes/sft_llama70b_pp4_tp8.py
accelerate launch --config_file ds_configs/sft_llama70b_pp4_tp8.yaml --machine_rank N --main_process_ip HOST recipes/sft_llama70b_pp4_tp8.py

The second command is for each host, with N = 0, 1, 2, 3 and HOST the first one's address.
"""

from toolkit import (
    Batch,
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
    note="70B full fine-tune, 4 pipeline stages x 8 tensor-parallel ranks, ZeRO-1, 4 x 8 x 80 GB.",
    model=Model(path="meta-llama/Llama-3.1-70B-Instruct", attention="flash_attention_2", activation_checkpointing=True),
    data=Data(train="data/train.jsonl", evaluation="data/test.jsonl"),
    batch=Batch(global_size=64, micro_size=1, sequence_length=4096),
    optimizer=Optimizer(learning_rate=5e-6, weight_decay=0.01, betas=(0.9, 0.95)),
    schedule=Schedule(type="linear", warmup_steps=50),
    precision=Precision(dtype="bf16", accumulation_dtype="bf16"),
    parallel=Parallel(zero_stage=1, pipeline=4, tensor=8, reduce_bucket_size=200_000_000),
    checkpoint=Checkpoint(every_steps=200, keep=1),
    evaluation=Evaluation(every_steps=200, max_sequences=16),
    launch=Launch(devices=8, hosts=4, device="cuda"),
    steps=1000,
)

if __name__ == "__main__":
    main(recipe)
