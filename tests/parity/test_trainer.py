"""An outside judge: the Hugging Face Trainer with DeepSpeed on the same fixed-length, unpadded batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.distributed import run_distributed
from tests.parity import strategies
from tests.parity.strategies import recipe
from tests.parity.worker import global_batches, run_recipe
from toolkit.ds_config.render import render
from toolkit.ds_config.target import Target
from toolkit.recipe import Batch, CausalLM, Data, Recipe

STEPS, LENGTH = 8, 16
# Without decay: given an optimizer in the DeepSpeed JSON the Trainer decays norm weights too, which we never do.
OPTIMIZER = strategies.OPTIMIZER.model_copy(update={"weight_decay": 0.0})


def trainer_losses(rank: int, world_size: int, run: Recipe, output_dir: str) -> list[float]:
    """This rank's loss of every micro-batch, from the Trainer's own loop."""
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    _, steps = global_batches(run, STEPS)
    rows = [
        {"input_ids": row, "labels": row} for step in steps for batch in step for row in batch["input_ids"].unbind(0)
    ]
    assert {len(row["input_ids"]) for row in rows} == {LENGTH}
    config = render(run, Target(world_size, "cpu"))
    # The Trainer's linear schedule is the field's; DeepSpeed's own block would shift it by one step.
    config.pop("scheduler", None)
    losses: list[float] = []

    class Recorder(Trainer):
        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            return SequentialSampler(self.train_dataset)

        def compute_loss(self, model: Any, inputs: Any, *_: Any, **options: Any) -> Any:
            options.pop("return_outputs", None)
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
            losses.append(float(outputs.loss))
            return loss

    arguments = TrainingArguments(
        output_dir=output_dir,
        deepspeed=config,
        use_cpu=True,
        per_device_train_batch_size=run.batch.micro_size,
        gradient_accumulation_steps=config["gradient_accumulation_steps"],
        max_steps=STEPS,
        learning_rate=OPTIMIZER.learning_rate,
        weight_decay=OPTIMIZER.weight_decay,
        max_grad_norm=OPTIMIZER.max_grad_norm,
        lr_scheduler_type="linear",
        warmup_steps=run.schedule.warmup_steps,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=run.seed,
    )
    model = AutoModelForCausalLM.from_pretrained(run.model.path, dtype=torch.float32)
    Recorder(model=model, args=arguments, train_dataset=rows).train()
    return losses


def test_same_losses_as_the_hugging_face_trainer(tiny_llama_dir: Path, chat_file: Path, tmp_path: Path) -> None:
    """Within 1e-4 in fp32, ZeRO-2 on two ranks with accumulation 2."""
    run = recipe(
        "causal_lm",
        tiny_llama_dir,
        chat_file,
        data=Data(train=str(chat_file), packing=False, overlong="truncate", prefetch=0),
        task=CausalLM(train_on="all"),
        optimizer=OPTIMIZER,
        batch=Batch(global_size=4, micro_size=1, sequence_length=LENGTH),
        steps=STEPS,
    )
    theirs = run_distributed(trainer_losses, 2, run, str(tmp_path / "trainer"), timeout_s=200)
    per_step = len(theirs[0]) // STEPS
    assert per_step == 2
    ours = run_distributed(run_recipe, 2, [(run, str(tmp_path / "ours"), None)])[0][0]
    for index, record in enumerate(ours):
        micro = [loss for rank in theirs for loss in rank[index * per_step : (index + 1) * per_step]]
        wanted = sum(micro) / len(micro)
        assert abs(record["loss"] - wanted) / wanted < 1e-4, f"step {index + 1}"
