"""Records of different lengths, a row each, with a model of transformers."""

import json

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

MODEL, DATA = "auto", "records"
NUMBERS = [str(number) for number in range(20)]
LLAMA = (
    "{name: auto, config: {model_type: llama, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, "
    "intermediate_size: 16, max_position_embeddings: 64}}"
)


def write_tokenizer(folder):
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate([*NUMBERS, "<pad>"])}, "<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<pad>").save_pretrained(folder)
    return folder


def write_records(file, count, seed):
    """Sums modulo 20: prompts of different lengths, answers of different lengths."""
    lines = []
    for index in range(count):
        numbers = [(seed + index * 7 + place * 3) % 20 for place in range(2 + index % 5)]
        answer = [sum(numbers[: end + 1]) % 20 for end in range(1 + index % 4)]
        lines.append(
            json.dumps({"prompt": " ".join(map(str, numbers)) + " ", "completion": " ".join(map(str, answer))})
        )
    file.write_text("\n".join(lines) + "\n")


def words(folder, packing=False, model=LLAMA):
    write_tokenizer(folder / "tokenizer")
    write_records(folder / "train.jsonl", 40, 0)
    write_records(folder / "val.jsonl", 11, 5)
    (folder / "training.yaml").write_text(
        f"task_name: records\nsample_tokens: 0\nmodel: {model}\ndataset: {{path: {folder / 'train.jsonl'}, eval_path: "
        f"{folder / 'val.jsonl'}, tokenizer: {folder / 'tokenizer'}, block_size: 16, "
        f"packing: {str(packing).lower()}}}\n"
    )
    return ["--training_config", str(folder / "training.yaml")]


def inputs(folder):
    return folder / "val.jsonl"
