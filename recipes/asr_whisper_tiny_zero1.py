"""Speech recognition: Whisper tiny.en learns to write out the numbers, dates and letters that one voice speaks.

deepspeed -q --num_gpus 1 recipes/asr_whisper_tiny_zero1.py
accelerate launch --config_file ds_configs/asr_whisper_tiny_zero1.yaml recipes/asr_whisper_tiny_zero1.py
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
    note="Speech to text in fp32, ZeRO-1, minutes on two cores: texts that Whisper would write in digits are written in words.",
    model=Model(path="whisper-tiny-en"),
    data=Data(train="voice-prompts", evaluation="voice-prompts", packing=False, overlong="drop"),
    task=SpeechSeq2Seq(text_prefix=" ", scores=("exact_match", "wer", "cer"), normalizer="basic", max_new_tokens=32),
    batch=Batch(global_size=8, micro_size=4),
    optimizer=Optimizer(learning_rate=2e-5),
    schedule=Schedule(type="linear", warmup_steps=3),
    precision=Precision(dtype="fp32"),
    parallel=Parallel(zero_stage=1),
    checkpoint=Checkpoint(every_steps=24),
    evaluation=Evaluation(every_steps=12),
    launch=Launch(devices=1),
    steps=24,
)

if __name__ == "__main__":
    main(recipe)
