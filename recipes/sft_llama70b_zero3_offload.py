"""Full fine-tuning of a 70B model on two hosts with 8 GPUs each.

deepspeed -q --hostfile hostfile --num_nodes 2 recipes/sft_llama70b_zero3_offload.py
accelerate launch --config_file ds_configs/sft_llama70b_zero3_offload.yaml --machine_rank N --main_process_ip HOST recipes/sft_llama70b_zero3_offload.py

The second command is for each host, with N = 0, 1 and HOST the first one's address.
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
    note="70B full fine-tune, ZeRO-3, optimizer and parameters offloaded, 2 x 8 x 80 GB.",
    model=Model(path="meta-llama/Llama-3.1-70B-Instruct", attention="flash_attention_2", activation_checkpointing=True),
    data=Data(train="data/train.jsonl", evaluation="data/test.jsonl"),
    batch=Batch(global_size=64, micro_size=1, sequence_length=4096),
    optimizer=Optimizer(learning_rate=5e-6, weight_decay=0.01, betas=(0.9, 0.95)),
    schedule=Schedule(type="linear", warmup_steps=50),
    precision=Precision(dtype="bf16", accumulation_dtype="bf16"),
    parallel=Parallel(
        zero_stage=3,
        offload_optimizer="cpu",
        offload_param="cpu",
        reduce_bucket_size=200_000_000,
        overlap_comm=True,
    ),
    checkpoint=Checkpoint(every_steps=200, keep=1),
    evaluation=Evaluation(every_steps=200, max_sequences=256),
    launch=Launch(devices=8, hosts=2, device="cuda"),
    steps=1000,
)

if __name__ == "__main__":
    main(recipe)
