"""Torch checkpoints with a text decoder, as the PyTorch trainer saves them, and T5's kind of tokeniser."""

from pathlib import Path
from typing import Any

import torch
from convert.checkpoints import ODD, Modules, checkpoint
from models.t5 import torch_t5
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn

CELLS = ODD.width * ODD.height
LETTERS = "abcdefghijklmnopq"


class TorchDecoder(nn.Module):
    """CubeToTextDecoder under the trainer's names."""

    def __init__(self, seed: int, **t5: Any) -> None:
        super().__init__()
        self.t5_model = torch_t5(seed, **t5, relative_attention_max_distance=128)  # shapes do not tell it: T5 has 128
        dim = self.t5_model.config.d_model
        self.surface_adapter = nn.Sequential(
            nn.Linear(CELLS, CELLS // 2), nn.GELU(), nn.LayerNorm(CELLS // 2), nn.Dropout(0.1), nn.Linear(CELLS // 2, dim), nn.LayerNorm(dim)
        )
        self.eval()


def save_with_decoder(decoder: TorchDecoder, folder: Path) -> list[str]:
    """Write checkpoint.pt, mapper.pt and both tokenisers; returns the arguments of convert."""
    modules = Modules(ODD)
    torch.save({**checkpoint(modules, ODD), "text_decoder_state_dict": decoder.state_dict()}, folder / "checkpoint.pt")
    torch.save(modules.part("input_mapper.", "output_collector."), folder / "mapper.pt")
    words = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "dog": 4}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.save(str(folder / "words.json"))
    t5_tokeniser().save(str(folder / "t5.json"))
    return [
        str(folder / "checkpoint.pt"), "--mapper", str(folder / "mapper.pt"), "--tokenizer", str(folder / "words.json"), "--decoder-tokenizer",
        str(folder / "t5.json"),
    ]  # fmt: skip


def t5_tokeniser(letters: str = LETTERS) -> Tokenizer:
    """A unigram tokeniser with T5's special tokens: <pad> 0, </s> 1, <unk> 2, then words of one letter."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"▁{letter}", -1.0) for letter in letters)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<pad>", "</s>", "<unk>")])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer
