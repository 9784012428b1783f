"""A module of one's own: what its author may get wrong, what is kept of its rows, and how it is built."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import toolkit
from toolkit.cli.flags import parse
from toolkit.engine.untrained import describe_frozen
from toolkit.errors import DataError, InputError, ModelError, RecipeError
from toolkit.models.custom import AutoCustomModel, CustomConfig, load_custom
from toolkit.models.random_weights import RandomWeights
from toolkit.models.stages import build_skeleton
from toolkit.recipe import Batch, Checkpoint, Custom, Data, Evaluation, LoRA, Model, Parallel, Precision, Recipe
from toolkit.recipe.target import load_target
from toolkit.tasks.custom.arrays import checked, given_back, kept
from toolkit.tasks.custom.records import checked_records
from toolkit.tasks.custom.task import ModuleTask
from toolkit.train.inputs import Inputs, prepare_inputs
from toolkit.train.progress import Display

GOOD = """
from dataclasses import dataclass
import numpy as np
import torch
from torch import nn
from toolkit.tasks.custom import CustomTask

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.table = nn.Embedding(10, width)
        self.shift = nn.Parameter(torch.zeros(width))
        self.out = nn.Linear(width, 10, bias=False)
        self.out.weight = self.table.weight
        self.register_buffer("scale", torch.tensor([float(np.random.rand())]))
        self.rates = [rate.item() for rate in torch.linspace(0, 1, 3)]
        self.note = "kept"
    def forward(self, ids, weights=None):
        hidden = self.table(ids) + self.shift
        return self.out(hidden if weights is None else hidden * weights[..., None])

@dataclass
class Good(CustomTask):
    width: int = 4
    rate: float = 0.5
    deep: bool = False
    sizes: tuple[int, ...] = (1, 2)
    padding = {"ids": 9}
    metrics = {"right": "rises", "pair": "rises"}
    def build(self):
        return Net(self.width)
    def rows(self, split):
        return [{"ids": [n % 9, (n + 1) % 9][: 1 + n % 2], "y": (n + 1) % 9} for n in range(12 if split == "train" else 5)]
    def loss(self, model, batch):
        return nn.functional.cross_entropy(model(batch["ids"])[:, 0], batch["y"], reduction="none")
    def measure(self, model, batch):
        ones = torch.ones(len(batch["y"]))
        return {"right": (model(batch["ids"])[:, 0].argmax(-1) == batch["y"]).float(), "pair": (3 * ones, 2 * ones)}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path with good.py in it."""
    before = set(sys.modules)
    (tmp_path / "good.py").write_text(GOOD)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    yield tmp_path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


def recipe_of(target: str = "good:Good", **changes: Any) -> Recipe:
    values = {
        "model": Model(),
        "data": Data(train="own", evaluation="own", packing=False, prefetch=0),
        "task": Custom(target, arguments=changes.pop("arguments", {})),
        "batch": Batch(global_size=4, micro_size=2),
        "precision": Precision(dtype="fp32"),
        "steps": 3,
    }
    return Recipe(**values | changes)


def prepared(target: str = "good:Good", **changes: Any) -> Inputs:
    return prepare_inputs(recipe_of(target, **changes), 0, 1, Display(is_main=False))


def variant(place: Path, name: str, old: str, new: str) -> str:
    """The target of good.py with `new` in the place of `old`."""
    assert old in GOOD
    (place / f"{name}.py").write_text(GOOD.replace(old, new))
    return f"{name}:Good"


# The target and its arguments


@pytest.mark.parametrize(
    ("target", "what", "do"),
    [
        ("good", "task.target='good'", "name the module as an import does"),
        ("nowhere.at_all:Task", "No module named 'nowhere'", "put its folder on PYTHONPATH"),
        ("good:Goood", "good has no 'Goood' (did you mean 'Good'?)", "correct task.target"),
        ("good:Net", "is <class 'good.Net'>", "name that class"),
        ("toolkit.tasks.custom:CustomTask", "lacks build and loss", "write them"),
        ("broken:Task", "No module named 'not_installed'", "install what it imports"),
    ],
)
def test_targets_that_are_none(place: Path, target: str, what: str, do: str) -> None:
    (place / "broken.py").write_text("import not_installed")
    with pytest.raises(RecipeError) as caught:
        prepared(target)
    assert what in caught.value.what and do in caught.value.do


def test_a_module_beside_the_recipe_is_pointed_to(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "elsewhere").mkdir()
    (place / "elsewhere" / "mine.py").write_text("")
    monkeypatch.chdir(place / "elsewhere")
    with pytest.raises(RecipeError) as caught:
        load_target("mine:Task")
    assert "PYTHONPATH=." in caught.value.do


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"widht": 3}, "widht=3, which good:Good does not take (did you mean 'width'?)"),
        ({"width": "wide"}, "task.arguments['width']='wide'"),
        ({"sizes": "[1, 2"}, "is not JSON"),
        ({"sizes": ["a"]}, """task.arguments['sizes']=['a']"""),
    ],
)
def test_arguments_that_do_not_fit(place: Path, arguments: dict[str, Any], what: str) -> None:
    with pytest.raises(RecipeError) as caught:
        prepared(arguments=arguments)
    assert what in caught.value.what


def test_an_argument_without_a_default_must_be_there(place: Path) -> None:
    target = variant(place, "needy", "width: int = 4", "width: int")
    with pytest.raises(RecipeError, match=r"task\.arguments has no width"):
        prepared(target)


def test_arguments_have_the_types_of_the_constructor_and_go_into_the_config(place: Path) -> None:
    words = ["--task.arguments", '{"rate": 1, "sizes": [3, 4], "deep": true}']
    recipe = parse(
        recipe_of(arguments={"width": 6, "rate": 2.0}), words, output_dir=place, description="", prog="x"
    ).recipe
    assert recipe.task.arguments == {"width": 6, "rate": 1, "sizes": "[3, 4]", "deep": True}  # type: ignore[attr-defined]
    pairs = ["--task.arguments", "deep", "False", "width", "7"]
    again = parse(recipe, pairs, output_dir=place, description="", prog="x").recipe
    inputs = prepare_inputs(again, 0, 1, Display(is_main=False))
    own = inputs.task.own  # type: ignore[attr-defined]
    assert (own.width, own.rate, own.deep, own.sizes) == (7, 1.0, False, (3, 4))
    assert isinstance(own.rate, float) and own.deep is False
    assert inputs.model_config.arguments == {"width": 7, "rate": 1.0, "deep": False, "sizes": [3, 4]}


def test_a_mapping_of_a_recipe_takes_further_names_from_the_command_line() -> None:
    before = Recipe(
        model=Model(architecture="llama", weights="random", tokenizer="x", config={"hidden_size": 32, "pad_token_id": "007"}),
        data=Data(train="x"), batch=Batch(global_size=1), steps=1,
    )  # fmt: skip
    found = parse(
        before, ["--model.config", "hidden_size", "64"], output_dir=Path("x"), description="", prog="x"
    ).recipe
    assert found.model.config == {"hidden_size": 64, "pad_token_id": "007"}


# The recipe


def test_only_a_task_that_brings_a_model_goes_without_one() -> None:
    with pytest.raises(RecipeError, match=r"model\.path=None and model\.architecture=None"):
        Recipe(data=Data(train="x"), batch=Batch(global_size=1), steps=1)
    assert recipe_of().model.is_new


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"model": Model(config={"a": 1})}, "model.config={'a': 1} with task.name='custom'"),
        ({"model": Model(tokenizer="x")}, "model.tokenizer='x' with task.name='custom'"),
        ({"model": Model(dropout=0.1)}, "model.dropout=0.1"),
        ({"model": Model(compile=True)}, "model.compile=True"),
        ({"tuning": LoRA()}, "tuning.name='lora' with task.name='custom'"),
        ({"precision": Precision(dtype="fp8")}, "precision.dtype='fp8' with task.name='custom'"),
        ({"parallel": Parallel(zero_stage=1, pipeline=2)}, "parallel.pipeline=2 with task.name='custom'"),
        ({"parallel": Parallel(zero_stage=1, tensor=2)}, "parallel.tensor=2 with task.name='custom'"),
        ({"parallel": Parallel(zero_stage=1, sequence=2)}, "parallel.sequence=2 with task.name='custom'"),
        ({"batch": Batch(global_size=4, sequence_length=64)}, "batch.sequence_length=64 has no effect"),
        ({"data": Data(train="own", streaming=True, packing=False)}, "data.streaming=True with data.train='own'"),
    ],
)
def test_what_is_of_transformers_models_is_refused(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_of(**changes)
    assert what in str(caught.value)


def test_metrics_are_those_of_the_class(place: Path) -> None:
    assert Custom("good:Good").metrics == {"loss": "falls", "right": "rises", "pair": "rises"}
    with pytest.raises(RecipeError, match=r"evaluation\.metric='rihgt'.*did you mean 'right'"):
        prepared(evaluation=Evaluation(every_steps=1, metric="rihgt"), checkpoint=Checkpoint(keep_best=True))


def test_another_recipe_becomes_one_on_the_command_line(place: Path) -> None:
    before = Recipe(model=Model(path="x"), data=Data(train="own", packing=False), batch=Batch(global_size=1), steps=1)
    words = ["--model.path", "None", "--task.name", "custom"]
    task = parse(before, [*words, "--task.target", "good:Good"], output_dir=place, description="", prog="x").recipe.task
    assert task == Custom("good:Good")
    with pytest.raises(RecipeError, match=r"task\.target=''"):
        parse(before, words, output_dir=place, description="", prog="x")


# Rows


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("return []", "rows('train') is empty"),
        ("return 3", "rows('train') gave 3, a int"),
        ("return (row for row in [{'a': 1}])", "a generator"),
        ("return [{'ids': [1], 'y': 1}, {'ids': [1]}]", "row 2 of data.train: it has the columns ['ids']"),
        ("return [{'ids': object(), 'y': 1}]", "cannot be kept"),
    ],
)
def test_rows_that_are_none(place: Path, body: str, what: str) -> None:
    line = '        return [{"ids": [n % 9, (n + 1) % 9][: 1 + n % 2], "y": (n + 1) % 9} for n in range(12 if split == "train" else 5)]'
    with pytest.raises(DataError) as caught:
        prepared(variant(place, "rowless", line, f"        {body}"))
    assert what in caught.value.what


def test_own_rows_must_be_there(place: Path) -> None:
    target = variant(place, "plain", "def rows", "def lines")
    with pytest.raises(RecipeError, match="rows of plain:Good is not there"):
        prepared(target)
    (place / "rows.jsonl").write_text('{"ids": [1, 2], "y": 3}\n' * 8)
    data = Data(train=str(place / "rows.jsonl"), evaluation_examples=2, packing=False)
    inputs = prepared(target, data=data)
    assert inputs.held_out is not None and len(inputs.held_out) == 2


def test_own_rows_may_be_split_and_cut_short(place: Path) -> None:
    data = Data(train="own", evaluation_examples=4, max_examples=10, packing=False)
    inputs = prepared(data=data)
    assert inputs.held_out is not None and (len(inputs.held_out), inputs.batches.store.num_rows) == (4, 6)  # type: ignore[union-attr]


def test_changed_rows_and_changed_code_are_noticed(place: Path) -> None:
    """Rows by their values, `encode` by the examples that it gives."""
    same, again = prepared(), prepared()
    assert same.data_content == again.data_content
    other = prepared(variant(place, "others", "(n + 1) % 9} for", "(n + 2) % 9} for"))
    assert other.data_content != same.data_content
    code = "    def encode(self, row):\n        return {'ids': row['ids'], 'y': row['y'] // 2}\n    def build"
    (place / "good.py").write_text(GOOD.replace("    def build", code))
    del sys.modules["good"]
    sys.path_importer_cache.clear()
    changed = prepared()
    assert changed.data_content == same.data_content
    assert changed.batches.contents().digest != same.batches.contents().digest


# Examples


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (None, "gave None"),
        ({}, "gave {}, a dict"),
        ([1], "gave [1], a list"),
        ({"a b": 1}, "an array named 'a b'"),
        ({"text": "abc"}, "gave 'text': 'abc', a str"),
        ({"none": None}, "gave 'none': None"),
        ({"empty": []}, "gave 'empty': [], an empty list"),
        ({"empty": [[], []]}, "gave 'empty': [[], []], an empty list"),
        ({"ragged": [[1], [1, 2]]}, "gave 'ragged': lists of different lengths"),
        ({"parts": {"a": 1}}, "gave 'parts': {'a': 1}, a dict"),
    ],
)
def test_examples_that_are_none(given: Any, what: str) -> None:
    with pytest.raises(DataError) as caught:
        checked(given, "encode of x:Y")
    assert caught.value.what.startswith("encode of x:Y ") and what in caught.value.what


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ([{"a": 1}], "gave 1 records for a batch of 2 examples"),
        (torch.ones(2), "gave tensor([1., 1.]), a Tensor"),
        (None, "gave None for a batch of 2"),
        ([{"a": 1}, 2], "gave the record 2, a int"),
        ([{"a": 1}, {"a": object()}], "a object"),
        ([{"a": 1}, {"a": [1, {2}]}], "gave a={2}, a set"),
        ([{"a": 1}, {2: 3}], "gave the record {2: 3}"),
    ],
)
def test_records_that_are_none(given: Any, what: str) -> None:
    with pytest.raises(RecipeError) as caught:
        checked_records(given, 2, "predict of x:Y")
    assert caught.value.what.startswith("predict of x:Y ") and what in caught.value.what


def test_records_hold_what_json_holds() -> None:
    given = {
        "tensor": torch.ones(2, dtype=torch.bfloat16),
        "number": np.float32(0.5),
        "deep": {"a": (torch.tensor(3), None, True)},
    }
    [found] = checked_records([given], 1, "")
    assert json.loads(json.dumps(found)) == {"tensor": [1.0, 1.0], "number": 0.5, "deep": {"a": [3, None, True]}}


def test_arrays_come_back_as_they_were() -> None:
    given = {
        "number": 3, "rate": 0.5, "yes": True, "list": [1, 2], "table": np.ones((2, 3)), "bytes": np.ones(2, np.uint8),
        "wide": np.ones(2, np.uint16), "tensor": torch.tensor([1.0]), "small": np.int32(4),
    }  # fmt: skip
    found = given_back(kept(checked(given, "encode")))
    assert {name: (str(value.dtype), value.shape) for name, value in found.items()} == {
        "number": ("int64", ()), "rate": ("float32", ()), "yes": ("bool", ()), "list": ("int64", (2,)),
        "table": ("float32", (2, 3)), "bytes": ("uint8", (2,)), "wide": ("int64", (2,)), "tensor": ("float32", (1,)),
        "small": ("int64", ()),
    }  # fmt: skip
    assert all(np.array_equal(found[name], np.asarray(value)) for name, value in given.items())


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (
            "{'y': 1 if row['y'] == 1 else 1.5}",
            "gave 'y' as a number of type float32, before it was a number of type int64",
        ),
        ("{'y': [1] if row['y'] == 1 else 1}", "gave 'y' as a number of type int64, before it was int64 [n]"),
        ("{'y': 1} if row['y'] == 1 else {'y': 1, 'z': 2}", "gave ['y', 'z'], before it was ['y']"),
    ],
)
def test_examples_that_differ(place: Path, body: str, what: str) -> None:
    code = f"    def encode(self, row):\n        return {body}\n    def build"
    with pytest.raises(DataError) as caught:
        prepared(variant(place, "differing", "    def build", code))
    assert what in caught.value.what and caught.value.what.startswith("row ")


def test_batches_are_filled_up(place: Path) -> None:
    task = prepared().task
    examples = [[kept(checked({"ids": ids, "y": 1, "m": np.ones((len(ids), 2))}, ""))] for ids in ([1, 2, 3], [4])]
    batch = task.collate([*examples, [task.ignored(examples[0][0])]])
    assert batch["ids"].tolist() == [[1, 2, 3], [4, 9, 9], [1, 2, 3]] and batch["y"].tolist() == [1, 1, 1]
    assert batch["m"][1].tolist() == [[1, 1], [0, 0], [0, 0]]
    assert task.count(batch) == 2  # the third only fills up


# The module


def test_what_fills_up_takes_no_part(place: Path) -> None:
    inputs = prepared()
    task, model = inputs.task, AutoCustomModel.from_config(inputs.model_config)
    store = inputs.held_out
    assert store is not None
    with torch.no_grad():
        plain = task.evaluate(model, task.collate([[store[0]], [store[1]]]))
        filled = task.evaluate(model, task.collate([[store[0]], [store[1]], [task.ignored(store[2])]]))
    assert plain == pytest.approx(filled, rel=1e-6) and filled["targets"] == 2.0
    assert task.metrics(filled)["pair"] == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("old", "new", "error", "what"),
    [
        ("return Net(self.width)", "return None", ModelError, "build() gave None"),
        ("return Net(self.width)", "return nn.ReLU()", ModelError, "gave ReLU, which has no parameters"),
        ("return Net(self.width)", "return Net(self.depth)", ModelError, "build() raised AttributeError"),
        ("nn.Embedding(10, width)", "nn.Embedding(10, width, sparse=True)", ModelError, "table has sparse=True"),
        ("self.shift =", "self.device =", ModelError, "a part named 'device'"),
        ("self.shift =", "self.config =", ModelError, "the module of wrong:Good has a part named 'config'"),
        ('self.note = "kept"', "self.more = [nn.Linear(2, 2)]", ModelError, "more is a list that holds modules"),
        ('self.note = "kept"', "self.more = {'a': [self.shift, nn.Parameter(torch.ones(2))]}", ModelError,
         "more is a dict that holds modules or parameters"),
        ('self.note = "kept"', "self.more = [self.table, {'a': self.shift}]", None, ""),
        ('"pair": "rises"}', '"pair": "rises"}\n    def figures(self, means):\n        return 3', RecipeError,
         "figures of wrong:Good gave 3, a int"),
        ('"pair": "rises"}', '"pair": "rises"}\n    def figures(self, means):\n        return {"pair": "x"}', RecipeError,
         "figures of wrong:Good gave pair='x', a str"),
        (', reduction="none")', ")", RecipeError, "loss of wrong:Good gave a tensor [] for a batch of 2 examples"),
        (', reduction="none")', ', reduction="none")[:1]', RecipeError, "gave a tensor [1] for a batch of 2 examples"),
        (', reduction="none")', ', reduction="none").detach()', RecipeError, "gave a tensor without a gradient"),
        (', reduction="none")', ').item()', RecipeError, "a float for a batch of 2 examples"),
        ('"pair": (3 * ones, 2 * ones)', '"pair": 3.0', RecipeError, "measure of wrong:Good gave 3.0"),
        ('"rises", "pair": "rises"', '"rises"', None, ""),
        ("    def build", "    def figures(self, means):\n        return {'other': 1.0}\n    def build", RecipeError,
         "figures of wrong:Good gave 'other', which Good.metrics does not name"),
        ("    def build", "    def collate(self, examples):\n        return {'ids': [1]}\n    def build", DataError,
         "collate of wrong:Good gave 'ids': [1]"),
        ("    def build", "    def targets(self, batch):\n        return 3\n    def build", RecipeError,
         "targets of wrong:Good gave 3"),
    ],
)  # fmt: skip
def test_what_an_author_may_get_wrong(
    place: Path, old: str, new: str, error: type[InputError] | None, what: str
) -> None:
    target = variant(place, "wrong", old, new)

    def all_of_it() -> None:
        inputs = prepared(target)
        model = AutoCustomModel.from_config(inputs.model_config)
        [batch] = [next(iter(inputs.batches.iterate(0, 1))).micro_batches[0]]
        inputs.task.count(batch)
        inputs.task.loss(model, batch, 1.0).trained.backward()
        with torch.no_grad():
            inputs.task.metrics(inputs.task.evaluate(model, batch))

    if error is None:
        all_of_it()
        return
    with pytest.raises(error) as caught:
        all_of_it()
    assert what in caught.value.what


def config(target: str = "good:Good", **arguments: Any) -> CustomConfig:
    return CustomConfig(target=target, arguments=arguments)


def test_the_shell_has_the_parts_of_the_module_under_their_names(place: Path) -> None:
    model: Any = AutoCustomModel.from_config(config())
    assert [name for name, _ in model.named_parameters()] == ["shift", "table.weight"]
    assert model.out.weight is model.table.weight and model.note == "kept"
    model.train()
    assert model.own_module.training and model.out.training
    model.eval()
    assert not model.own_module.training
    with pytest.raises(AttributeError):
        _ = model.nothing


def test_a_skeleton_has_no_memory_and_real_buffers(place: Path) -> None:
    model: Any = build_skeleton(AutoCustomModel, config(width=6))
    assert all(weight.is_meta for weight in model.parameters()) and model.table.weight.shape == (10, 6)
    assert model.out.weight is model.table.weight and not model.scale.is_meta


def test_the_seed_decides_the_weights(place: Path) -> None:
    """Those of numpy too, however many were drawn before."""
    found = []
    for seed in (1, 1, 2):
        np.random.rand()
        torch.rand(3)
        drawn = RandomWeights(AutoCustomModel, config(), seed)
        found.append((drawn.parameter("table.weight"), dict(drawn.buffers())["scale"]))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert not torch.equal(found[0][0], found[2][0]) and not torch.equal(found[0][1], found[2][1])


def test_16_bit_modules_read_and_give_fp32(place: Path) -> None:
    model: Any = AutoCustomModel.from_config(config()).to(torch.bfloat16)
    seen = []
    model.out.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    found = model(torch.tensor([[1, 2]]), weights=torch.ones(1, 2))
    assert seen == [torch.bfloat16] and found.dtype == torch.float32


def test_a_module_comes_back_from_its_folder(place: Path) -> None:
    torch.manual_seed(0)
    model: Any = AutoCustomModel.from_config(config(width=6))
    model.save_pretrained(place / "export")
    loaded: Any = toolkit.load_custom(place / "export")
    assert type(loaded).__name__ == "Net" and not loaded.training and loaded.out.weight is loaded.table.weight
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(loaded(ids), model(ids)) and torch.equal(loaded.scale, model.scale)
    with pytest.raises(ModelError, match="holds no model"):
        load_custom(place)
    (place / "good.py").write_text(GOOD.replace("self.shift", "self.offset"))
    del sys.modules["good"]
    sys.path_importer_cache.clear()
    with pytest.raises(ModelError, match="offset is not the same in its weights and in the module"):
        load_custom(place / "export")


def test_a_run_does_not_begin_with_a_model_of_transformers(place: Path, tiny_bert_dir: Path) -> None:
    with pytest.raises(ModelError, match="it holds a bert"):
        prepared(model=Model(path=str(tiny_bert_dir)))
    with pytest.raises(ModelError, match="it holds a bert"):
        load_custom(tiny_bert_dir)


def test_weights_that_are_cut_off_or_of_another_module_are_refused(place: Path) -> None:
    from toolkit.models.contents import compare, settle
    from toolkit.models.loading import check_missing
    from toolkit.models.partial import load_part

    AutoCustomModel.from_config(config()).save_pretrained(place / "export")
    contents = compare(AutoCustomModel, config(width=6), str(place / "export"))
    with pytest.raises(ModelError, match=r"has shape \(4,\) in the files and \(6,\) in the model"):
        settle(AutoCustomModel, config(width=6), str(place / "export"), contents)
    other = config(variant(place, "renamed", "self.shift", "self.offset"))
    skeleton: Any = build_skeleton(AutoCustomModel, other)
    with pytest.raises(ModelError, match="has no weights for offset"):
        check_missing(load_part(skeleton, str(place / "export")), str(place / "export"), skeleton)
    file = place / "export" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ModelError, match=r"model\.safetensors \(50 bytes\) is cut off or damaged"):
        prepared(model=Model(path=str(place / "export")))


def test_parity_has_nothing_to_compare_it_with() -> None:
    from toolkit.parity.strategies import choose
    from toolkit.parity.walk import compare

    with pytest.raises(RecipeError, match="no second module"):
        compare(
            recipe_of(),
            "x",
            choose(["zero1"]),
            steps=2,
            dtype="fp32",
            architecture=None,
            timeout_s=60,
            watch=nullcontext,
        )


def test_a_preview_shows_the_arrays(place: Path) -> None:
    task = prepared().task
    shown = task.show(kept(checked({"ids": [1, 2], "y": 3}, "")))
    assert shown.heading == "3 values" and shown.parts == [("ids: [1 2]\ny: 3", False)]
    assert isinstance(task, ModuleTask) and task.vocabulary_size is None


def test_predictions_are_scored(place: Path) -> None:
    code = (
        "    def predict(self, model, batch):\n"
        "        return [{'said': int(best), 'right': int(y)} for best, y in zip(model(batch['ids'])[:, 0].argmax(-1), batch['y'])]\n"
        "    def score(self, records):\n"
        "        return {'right': sum(one['said'] == one['right'] for one in records) / len(records)}\n"
        "    def build"
    )
    inputs = prepared(variant(place, "scored", "    def build", code))
    task, model = inputs.task, AutoCustomModel.from_config(inputs.model_config)
    assert inputs.held_out is not None and task.makes_records
    examples = [inputs.held_out[index] for index in range(5)]
    with torch.no_grad():
        records = task.predict(model, task.collate([[example] for example in examples]), examples, lambda *_: [])  # type: ignore[arg-type]
        sums = task.evaluate(model, task.collate([[example] for example in examples]))
    assert len(records) == 5 and task.score(records)["right"] == pytest.approx(task.metrics(sums)["right"])
    assert not prepared().task.makes_records


def test_recurrent_layers_use_the_weights_they_are_given(place: Path) -> None:
    """torch's hold a list of their weights beside."""
    from toolkit.models.random_weights import fill

    target = variant(place, "recurrent", "self.note =", "self.reader = nn.LSTM(width, width); self.note =")
    skeleton: Any = build_skeleton(AutoCustomModel, config(target))
    drawn = RandomWeights(AutoCustomModel, config(target), 3)
    fill(skeleton, drawn)
    reader = nn.LSTM(4, 4)
    with torch.no_grad():
        for name, weight in reader.named_parameters():
            weight.copy_(drawn.parameter(f"reader.{name}"))
    states = torch.rand(3, 1, 4)
    torch.testing.assert_close(skeleton.reader(states)[0], reader(states)[0])


def test_weights_without_a_gradient_are_said() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    assert describe_frozen(model) is None
    model[0].requires_grad_(False)
    assert describe_frozen(model) == "9 of 13 parameters stay as they are: 0.weight, 0.bias"
