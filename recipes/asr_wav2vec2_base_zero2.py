"""Fine-tune wav2vec 2.0 by CTC on the 100 clean hours of LibriSpeech.

deepspeed -q --num_gpus 2 recipes/asr_wav2vec2_base_zero2.py
accelerate launch --config_file ds_configs/asr_wav2vec2_base_zero2.yaml recipes/asr_wav2vec2_base_zero2.py
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
    SpeechCTC,
    main,
)

recipe = Recipe(
    note="LibriSpeech in bf16, ZeRO-2, 2 GPUs: batches of one length, SpecAugment behind frozen convolutions, word error rate.",
    model=Model(path="facebook/wav2vec2-base"),
    data=Data(
        train="openslr/librispeech_asr",
        evaluation="openslr/librispeech_asr",
        split="train.100",
        evaluation_split="validation",
        subset="clean",
        group_by_length=True,
        packing=False,
        overlong="drop",
    ),
    task=SpeechCTC(mask_time_prob=0.065, mask_feature_prob=4e-3),
    batch=Batch(global_size=64, micro_size=8),
    optimizer=Optimizer(learning_rate=1e-4, weight_decay=5e-3),
    schedule=Schedule(type="linear", warmup_steps=1000),
    precision=Precision(dtype="bf16"),
    parallel=Parallel(zero_stage=2),
    checkpoint=Checkpoint(every_steps=1000, keep_best=True),
    evaluation=Evaluation(every_steps=1000, max_sequences=1024, metric="wer"),
    launch=Launch(devices=2, device="cuda"),
    steps=10_000,
)

if __name__ == "__main__":
    main(recipe)
