"""Fine-tune Whisper large-v3 on German speech of Common Voice.

deepspeed -q --num_gpus 8 recipes/asr_whisper_large_v3_zero2.py
accelerate launch --config_file ds_configs/asr_whisper_large_v3_zero2.yaml recipes/asr_whisper_large_v3_zero2.py
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
    SpeechSeq2Seq,
    main,
)

recipe = Recipe(
    note="Common Voice 17 in bf16, ZeRO-2, 8 GPUs: word error rate of texts that Whisper writes, with SpecAugment.",
    model=Model(path="openai/whisper-large-v3", activation_checkpointing=True),
    data=Data(
        train="fixie-ai/common_voice_17_0",
        evaluation="fixie-ai/common_voice_17_0",
        evaluation_split="validation",
        subset="de",
        packing=False,
        overlong="drop",
        unreadable="skip",
    ),
    task=SpeechSeq2Seq(
        text_field="sentence",
        language="german",
        mask_time_prob=0.05,
        mask_feature_prob=0.05,
        max_new_tokens=128,
    ),
    batch=Batch(global_size=128, micro_size=8),
    optimizer=Optimizer(learning_rate=1e-5),
    schedule=Schedule(type="linear", warmup_steps=500),
    precision=Precision(dtype="bf16"),
    parallel=Parallel(zero_stage=2),
    checkpoint=Checkpoint(every_steps=500, keep_best=True),
    evaluation=Evaluation(every_steps=500, max_sequences=1024, metric="wer"),
    launch=Launch(devices=8, device="cuda"),
    steps=5000,
)

if __name__ == "__main__":
    main(recipe)
