"""Teach two halves of MiniLM to translate descriptions of Debian's packages into German.

deepspeed -q --num_gpus 2 recipes/translate_bert2bert_debian_zero2.py
accelerate launch --config_file ds_configs/translate_bert2bert_debian_zero2.yaml recipes/translate_bert2bert_debian_zero2.py
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
    Seq2Seq,
    main,
)

recipe = Recipe(
    note="Translation by an encoder and a decoder that start as MiniLM, in fp32, ZeRO-2: BLEU and chrF of generated texts.",
    model=Model(path="minilm-bert2bert", dropout=0.1),
    data=Data(train="debian-en-de", evaluation="debian-en-de", packing=False, overlong="drop"),
    task=Seq2Seq(
        source_field="en",
        target_field="de",
        target_length=96,
        label_smoothing=0.1,
        scores=("bleu", "chrf"),
        max_new_tokens=32,
        sample_prompt="tool to convert images",
    ),
    batch=Batch(global_size=32, micro_size=16, sequence_length=64),
    optimizer=Optimizer(learning_rate=5e-4, weight_decay=0.01),
    schedule=Schedule(type="cosine", warmup_steps=20),
    precision=Precision(dtype="fp32"),
    parallel=Parallel(zero_stage=2),
    checkpoint=Checkpoint(every_steps=200, keep_best=True),
    evaluation=Evaluation(every_steps=200, max_sequences=64),
    launch=Launch(devices=2),
    steps=400,
)

if __name__ == "__main__":
    main(recipe)
