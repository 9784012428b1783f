"""A recipe for what was seen: the source's, with the fields set that this model and this data ask for, each with its reason."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from toolkit.data.packing import Counts, best_fit
from toolkit.draft import sizes
from toolkit.draft.question import first_question
from toolkit.draft.roles import FIELDS_OF, WORDS, Kind, Roles
from toolkit.draft.sheet import Reason, Sheet
from toolkit.draft.survey import Look, Measured, ModelFacts
from toolkit.errors import RecipeError, plural
from toolkit.recipe import Recipe
from toolkit.recipe.length import check_length


@dataclass(frozen=True)
class Seen:
    """What a proposal is about."""

    roles: Roles
    look: Look
    measured: Measured
    model: ModelFacts
    own_data: bool
    """Whether the data is the user's; else it is the source's, and so are most numbers."""
    own_model: bool
    held_out_split: str | None = None
    """The split of the user's folder to evaluate on."""

    @property
    def examples(self) -> float:
        """Of the whole file, as far as the measured rows tell; infinite where nothing tells."""
        if self.look.total is None:
            return math.inf
        return self.look.total * len(self.measured.examples) / self.measured.num_rows


def propose(sheet: Sheet, seen: Seen, *, steps: int | None, epochs: float | None) -> Recipe:
    """Fill `sheet`, whose columns are set, and make the recipe of it. Raises RecipeError where the user's own fields leave none."""
    if seen.own_data:
        _hold_out(sheet, seen)
        _sample(sheet, seen)
    if seen.own_data or seen.own_model:
        _sequence_length(sheet, seen)
    if sheet["optimizer.type"] in ("adam", "adamw"):
        _learning_rate(sheet, seen)
    total = _batch_and_length(sheet, seen, steps, epochs)
    recipe = sheet.recipe()
    if total is not None:
        check_length(recipe, total)
    return recipe


def set_columns(sheet: Sheet, roles: Roles) -> None:
    """The task and the columns of the data."""
    classification = roles.kind == "classification"
    sheet.set("task.name", "sequence_classification" if classification else "causal_lm")
    if classification:
        sheet.set("data.packing", False)
    for name in FIELDS_OF[roles.kind]:
        if name in roles.fields:
            sheet.set(f"task.{name}", roles.fields[name], roles.why[name])
    if roles.kind == "text":
        sheet.set(
            "data.overlong", "split", "a text longer than a sequence becomes several examples: nothing is cut off"
        )
    elif sheet["data.overlong"] == "split":
        sheet.set("data.overlong", "truncate")


def _hold_out(sheet: Sheet, seen: Seen) -> None:
    if sheet["data.evaluation"] is not None or "data.evaluation_examples" in sheet.given:
        return
    if seen.held_out_split is not None:
        sheet.set("data.evaluation", sheet["data.train"], f"the folder has a split {seen.held_out_split!r}")
        sheet.set("data.evaluation_split", seen.held_out_split)
        return
    if sheet["data.streaming"]:
        return
    total = seen.look.total
    count = sizes.choose_held_out(10**6 if total is None else total)
    of = "the rows" if total is None or not seen.look.counted else plural(total, "row")
    why = f"held out of {of}, so that the loss on what is not trained is known" if count else ""
    sheet.set("data.evaluation_examples", count, why)


def _sample(sheet: Sheet, seen: Seen) -> None:
    prompt = first_question(sheet, seen.roles, seen.look.first)
    why = "the first of the data; answered before and after training" if prompt else ""
    sheet.set("task.sample_prompt", prompt, why)


def _sequence_length(sheet: Sheet, seen: Seen) -> None:
    lengths, packing = seen.measured.lengths, bool(sheet["data.packing"])
    splits = sheet["data.overlong"] == "split"
    found = sizes.choose_length(lengths, seen.model.positions, packing=packing, splits=splits)
    tokens = sheet.given.get("batch.sequence_length", found.tokens)
    held = sum(length <= tokens for length in lengths)
    unit = {"classification": "texts", "text": "texts", "messages": "conversations"}.get(seen.roles.kind, "pairs")
    why = f"holds {held:,} of {len(lengths):,} {unit} whole, the longest has {max(lengths):,} tokens"
    if held < len(lengths):
        why += f"; {_what_becomes(seen, tokens, str(sheet['data.overlong']))}"
    if packing and found.full is not None and tokens == found.tokens:
        why += f"; packed it is {found.full:.0%} full"
    if tokens == seen.model.positions:
        why += f"; the model has {tokens:,} positions"
    elif tokens == sizes.LONGEST < max(lengths):
        why += "; for more memory than most devices have: --batch.sequence_length N"
    if "batch.sequence_length" in sheet.given:
        sheet.reasons.append(Reason("batch.sequence_length", tokens, f"as you said; {why}"))
    sheet.set("batch.sequence_length", tokens, why)


def _what_becomes(seen: Seen, tokens: int, overlong: str) -> str:
    """Of the examples that are longer than `tokens`."""
    task = seen.measured.task
    longer = [example for example in seen.measured.examples if task.size(example) > tokens]
    if overlong == "error":
        return f"{len(longer):,} stop the run, data.overlong='error'"
    pieces = [piece for example in longer for piece in task.fitted(example, tokens, overlong, Counts())]
    lost = sum(not task.targets(piece) for piece in pieces)
    said = {"truncate": "cut off", "drop": "left out", "split": "cut into several"}[overlong]
    return f"{len(longer):,} {'is' if len(longer) == 1 else 'are'} {said}" + (
        f", {lost:,} of them before anything to learn" if lost else ""
    )


def _learning_rate(sheet: Sheet, seen: Seen) -> None:
    adapters, model = sheet["tuning.name"] == "lora", seen.model
    if "tuning" in sheet.exchanged:
        factor = sizes.ADAPTERS_RATE if adapters else 1.0 / sizes.ADAPTERS_RATE
        why = (
            "adapters take larger steps than all weights"
            if adapters
            else "all weights take smaller steps than adapters"
        )
        sheet.set("optimizer.learning_rate", float(f"{sheet['optimizer.learning_rate'] * factor:.3g}"), why)
    if not seen.own_model or sheet["model.weights"] != "pretrained":
        return
    rate = sizes.learning_rate_for(model.parameters, adapters=adapters)
    if rate < sheet["optimizer.learning_rate"]:
        why = f"a model of {model.parameters / 1e9:.2g} B parameters takes smaller steps than the source's"
        sheet.set("optimizer.learning_rate", rate, why)


def _batch_and_length(sheet: Sheet, seen: Seen, steps: int | None, epochs: float | None) -> int | None:
    """Batch, length of the run and what has to fit into it; returns the steps, None where nothing tells."""
    if seen.own_data and not sheet["data.streaming"]:
        sequences = _sequences(sheet, seen)
        if math.isfinite(sequences):
            sequences = _enough_for_all(sheet, seen, int(sequences))
        _batch(sheet, sequences)
    else:
        sequences = _sequences(sheet, seen)
        _divide(sheet)
    per_epoch = sequences / sheet["batch.global_size"]
    keeps_length = steps is None and epochs is None and (not seen.own_data or sheet["data.streaming"])
    if keeps_length:
        steps, epochs = sheet["steps"], sheet["epochs"]
    elif steps is None and epochs is None:
        epochs = _epochs(sheet, seen.roles.kind, per_epoch)
    sheet.values |= {"steps": steps, "epochs": epochs}
    total = steps if steps is not None else per_epoch * (epochs or 1.0)
    known = int(max(1, total)) if math.isfinite(total) else None
    if seen.own_data or not keeps_length:
        _intervals(sheet, 10**6 if known is None else known)
    return known


def _sequences(sheet: Sheet, seen: Seen) -> float:
    """Of the rows that are trained, as many as fit into the chosen length."""
    held_out: int = sheet["data.evaluation_examples"] if sheet["data.evaluation"] is None else 0
    capacity: int = sheet["batch.sequence_length"]
    splits, packing = sheet["data.overlong"] == "split", sheet["data.packing"]
    lengths = [
        piece
        for length in seen.measured.lengths
        for piece in ([capacity] * (length // capacity) + [length % capacity] if splits else [min(length, capacity)])
        if piece
    ]
    share = len(lengths) / len(seen.measured.lengths)
    if packing:
        share *= len(best_fit(lengths, capacity)) / len(lengths)
    return max(1.0, (seen.examples - held_out) * share)


def _enough_for_all(sheet: Sheet, seen: Seen, sequences: int) -> int:
    """Sequences for every replica: packed none, or trained by fewer devices."""
    if sequences >= _replicas(sheet):
        return sequences
    if sheet["data.packing"]:
        why = f"packed, the data would fill {plural(sequences, 'sequence')}, fewer than there are ranks"
        sheet.set("data.packing", False, why)
        sequences = int(_sequences(sheet, seen))
    if sequences < _replicas(sheet) and _ranks_of_a_replica(sheet) == 1:
        sheet.set("launch.hosts", 1)
        sheet.set("launch.devices", 1, f"{plural(sequences, 'sequence')} for all ranks is too little for more")
    if sequences < _replicas(sheet):
        raise RecipeError(
            f"launch.devices={sheet['launch.devices']} for data of {plural(sequences, 'sequence')}",
            expected="a sequence for each rank in every step",
            do="give --devices 1, or more data",
        )
    return sequences


def _replicas(sheet: Sheet) -> int:
    """Ranks, or groups of them, that each train sequences of their own."""
    return max(1, int(sheet["launch.devices"]) * int(sheet["launch.hosts"]) // _ranks_of_a_replica(sheet))


def _ranks_of_a_replica(sheet: Sheet) -> int:
    return math.prod(int(sheet[f"parallel.{name}"]) for name in ("pipeline", "tensor", "sequence"))


def _batch(sheet: Sheet, sequences: float) -> None:
    count, length = 10**9 if math.isinf(sequences) else int(sequences), sheet["batch.sequence_length"]
    replicas = _replicas(sheet)
    found = sizes.choose_batch(
        count, replicas, length, largest_micro=sheet["batch.micro_size"], stages=sheet["parallel.pipeline"]
    )
    width = replicas * sheet.given.get("batch.micro_size", 1)
    about = "" if math.isinf(sequences) else f" of about {count:,}"
    noun = "packed sequences" if sheet["data.packing"] else "examples"
    size = math.ceil(found.global_size / width) * width
    sheet.set("batch.global_size", size, f"{noun} per step{about}, over {plural(replicas, 'replica')}")
    micro = math.gcd(found.micro_size, max(1, sheet["batch.global_size"] // replicas))
    sheet.set("batch.micro_size", micro, f"{micro} x {length:,} tokens at once on each rank; accumulation follows")


def _divide(sheet: Sheet) -> None:
    """Let the source's batch divide by the ranks there are."""
    replicas, size, micro = _replicas(sheet), sheet["batch.global_size"], sheet["batch.micro_size"]
    if size % (replicas * micro):
        micro = min(micro, max(1, size // replicas))
        sheet.set("batch.micro_size", micro, "at once on each rank")
        width = replicas * int(sheet["batch.micro_size"])
        why = f"the source's {size}, as a multiple of {plural(replicas, 'replica')}"
        sheet.set("batch.global_size", math.ceil(size / width) * width, why)


def _epochs(sheet: Sheet, kind: Kind, per_epoch: float) -> float:
    if not math.isfinite(per_epoch):
        sheet.reasons.append(Reason("epochs", 1, "one pass: the rows were not counted"))
        return 1.0
    epochs = sizes.choose_epochs(per_epoch, usual=1 if kind == "text" else 3)
    sheet.reasons.append(Reason("epochs", epochs, f"about {max(1, round(per_epoch * epochs)):,} steps"))
    return float(epochs)


def _intervals(sheet: Sheet, total: int) -> None:
    """Warm-up, checkpoints and evaluations that fit into a run of `total` steps."""
    if sheet["schedule.type"] not in ("one_cycle", "reduce_on_plateau"):
        most = max(100, sheet["schedule.warmup_steps"])
        warmup = sizes.choose_warmup(total, most)
        sheet.set("schedule.warmup_steps", warmup, "a twentieth of the run" if warmup else "")
    else:
        sheet.set("schedule.warmup_steps", 0)
    if (sheet["schedule.decay_steps"] or 0) > total - sheet["schedule.warmup_steps"]:
        sheet.set("schedule.decay_steps", None)
    every = sizes.choose_interval(total, 5)
    often = f"about {total // every} in the run" if every and total < 10**6 else ""
    sheet.set("checkpoint.every_steps", every, often)
    is_held_out = sheet["data.evaluation"] is not None or sheet["data.evaluation_examples"] > 0
    watched = sheet["checkpoint.keep_best"] or sheet["evaluation.early_stopping_patience"]
    sheet.set(
        "evaluation.every_steps", every if is_held_out else 0, "with each checkpoint" if every and is_held_out else ""
    )
    if not watched:
        return
    before = (total - 1) // sheet["evaluation.every_steps"] if sheet["evaluation.every_steps"] else 0
    if before < 1:
        sheet.set(
            "checkpoint.keep_best", False, "the run is too short, or nothing is held out, to tell a best checkpoint"
        )
    if before <= sheet["evaluation.early_stopping_patience"]:
        sheet.set("evaluation.early_stopping_patience", 0)
    if not (sheet["checkpoint.keep_best"] or sheet["evaluation.early_stopping_patience"]):
        sheet.set("evaluation.metric", "loss")


def headline(kind: Kind, recipe: Recipe) -> str:
    """The first line of the recipe's docstring."""
    data = Path(recipe.data.train).name
    if recipe.model.path is None or recipe.model.weights == "random":
        return f"Train {recipe.model.path or f'a {recipe.model.architecture}'} from scratch on the {WORDS[kind]} of {data}."
    model = Path(recipe.model.path).name
    verb = {"classification": "Teach {} the classes of {}.", "text": "Train {} further on the texts of {}."}
    return verb.get(kind, "Fine-tune {} on the " + WORDS[kind] + " of {}.").format(model, data)
