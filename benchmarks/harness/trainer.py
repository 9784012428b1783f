"""The Hugging Face Trainer on the model, the data and the DeepSpeed configuration of a recipe."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any


def make_trainer(
    recipe: Any,
    inputs: Any,
    model: Any,
    folder: Path,
    *,
    examples: int,
    accumulation: int,
    world_size: int,
    grouped: bool = False,
) -> Any:
    """The Trainer with the recipe's configuration, batch sizes apart, and its usual settings for the rest.

    It takes micro-batches of `examples`, padded to the longest, `accumulation` of them per step and rank; `grouped`
    puts examples of like length into one. Its `marks` are the times at which each step was over, its `counts` the
    tokens, the tokens with padding and the examples of each micro-batch.
    """
    from datasets import Dataset
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

    from harness.engine import configured
    from toolkit.engine import device

    config = configured(recipe, world_size, inputs.model_config)
    config |= {
        "train_micro_batch_size_per_gpu": examples,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": examples * accumulation * world_size,
    }
    arguments = TrainingArguments(
        output_dir=str(folder),
        deepspeed=config,
        bf16="bf16" in config,
        use_cpu=device.kind() == "cpu",
        per_device_train_batch_size=examples,
        gradient_accumulation_steps=accumulation,
        max_steps=recipe.steps,
        learning_rate=recipe.optimizer.learning_rate,
        weight_decay=recipe.optimizer.weight_decay,
        max_grad_norm=recipe.optimizer.max_grad_norm,
        warmup_steps=recipe.schedule.warmup_steps,
        lr_scheduler_type=recipe.schedule.type,
        train_sampling_strategy="group_by_length" if grouped else "random",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )

    class Watched(Trainer):  # type: ignore[misc]
        """Notes what each micro-batch holds."""

        def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
            mask = inputs["attention_mask"]
            self.counts.append((int(mask.sum()), mask.numel(), len(mask)))
            return super().training_step(model, inputs, num_items_in_batch)

    class Clock(TrainerCallback):  # type: ignore[misc]
        """Notes when each optimizer step is over."""

        def on_step_end(self, *_: Any, **__: Any) -> None:
            device.synchronize()
            trainer.marks.append(time.perf_counter())

    store = inputs.batches.store
    rows = [{name: column.tolist() for name, column in store[index].items()} for index in range(len(store))]
    collate = DataCollatorForSeq2Seq(inputs.task.tokenizer, label_pad_token_id=-100)
    data = Dataset.from_list(rows)
    trainer = Watched(model=model, args=arguments, train_dataset=data, data_collator=collate, callbacks=[Clock()])
    trainer.counts, trainer.marks = [], []
    return trainer
