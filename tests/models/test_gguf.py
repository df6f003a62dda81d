"""Models and tokenizers out of .gguf files: a tiny one is written here by the package `gguf` itself."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from adapting import disturb, process_of
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import data.records
import models.auto
from models import adapt, pretrained
from trainer.hf_patches import without_first_values
from trainer.memory_ledger import exchange, from_meta

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")

HEADS, KEY_HEADS, WIDTH, INNER, LAYERS = 4, 2, 64, 96, 2
LETTERS = [chr(code) for code in range(33, 127)]
TOKENS = ["<pad>", "<|im_start|>", "<|im_end|>", *LETTERS, "Ġ", "Ċ", "Ġa", "an", "<|endoftext|>"]
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def tiny_llama():
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
            num_key_value_heads=KEY_HEADS, vocab_size=len(TOKENS), tie_word_embeddings=True, rope_theta=10000.0,
            max_position_embeddings=256, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )
    ).eval()  # fmt: skip


def paired(weight, heads):
    """GGUF interleaves the two halves of each head, which transformers keeps one after the other."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(model, path):
    writer = gguf.GGUFWriter(str(path), "llama")
    values = {
        "context_length": 256, "embedding_length": WIDTH, "block_count": LAYERS, "feed_forward_length": INNER,
        "head_count": HEADS, "head_count_kv": KEY_HEADS, "rope_dimension_count": WIDTH // HEADS, "rope_freq_base": 1e4,
        "layer_norm_rms_eps": model.config.rms_norm_eps, "vocab_size": len(TOKENS), "tokenizer_model": "gpt2",
        "tokenizer_pre": "smollm", "token_list": TOKENS, "token_types": [3, 3, 3] + [1] * (len(TOKENS) - 4) + [3],
        "token_merges": ["Ġ a", "a n"], "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        "chat_template": TEMPLATE,
    }  # fmt: skip
    for name, value in values.items():
        getattr(writer, f"add_{name}")(value)
    state = model.state_dict()
    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"].numpy())
    writer.add_tensor("output_norm.weight", state["model.norm.weight"].numpy())
    for layer in range(LAYERS):
        for ours, theirs in NAMES.items():
            weight = state[f"model.layers.{layer}.{ours}.weight"]
            if theirs in ("attn_q", "attn_k"):
                weight = paired(weight, HEADS if theirs == "attn_q" else KEY_HEADS)
            writer.add_tensor(f"blk.{layer}.{theirs}.weight", weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    write_gguf(tiny_llama(), folder / "tiny.gguf")
    return folder


@torch.no_grad()
def logits(model):
    ids = torch.arange(30).reshape(2, 15) + 3
    return model.eval()(input_ids=ids)["logits"]


def build(path, vocab_size=None):
    return models.auto.build(models.auto.Config(vocab_size=vocab_size), process_of(model_name_or_path=str(path)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny.gguf", "."], ids=["file", "folder"])
def test_weights_are_those_that_were_written_and_are_saved_as_any_others(folder, name, tmp_path):
    model = build(folder / name)
    torch.testing.assert_close(logits(model), logits(tiny_llama()), rtol=1e-5, atol=1e-5)
    assert model.new_weights == set() and model.loaded_from == str(folder / "tiny.gguf")
    assert model.lm_head.weight is model.get_input_embeddings().weight
    # A plain model, without what the Trainer refuses.
    assert not getattr(model, "is_quantized", False) and getattr(model, "hf_quantizer", None) is None
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=0)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("shown", [True, False])
def test_the_bar_of_a_file_follows_the_setting_of_transformers(folder, shown, capfd, monkeypatch):
    monkeypatch.setattr(transformers.utils.logging, "_tqdm_active", shown)
    build(folder / "tiny.gguf")
    assert ("GGUF" in capfd.readouterr().err) == shown


@pytest.mark.slow
def test_an_adapter_finds_its_base_again(folder, tmp_path, monkeypatch):
    """By our loader, merged, and in plain PEFT, which reads the path of the .gguf file in adapter_config.json."""
    import peft

    monkeypatch.chdir(folder)
    process = process_of(model_name_or_path="tiny.gguf", lora_enable=True, lora_task_type="CAUSAL_LM")
    adapted = adapt.build_adapted(models.auto, models.auto.Config(), process)
    disturb(adapted.model)
    expected = logits(adapted.model)
    assert (expected - logits(tiny_llama())).abs().max() > 1e-3
    adapted.save(tmp_path / "run")
    assert not (tmp_path / "run/base").exists()
    monkeypatch.chdir(tmp_path)
    again = adapt.load_adapted(tmp_path / "run", models.auto)
    torch.testing.assert_close(logits(again), expected, rtol=0, atol=1e-6)
    from models.adapt.saved_model import plain_model

    torch.testing.assert_close(logits(plain_model(tmp_path / "run", models.auto)), expected, rtol=0, atol=1e-5)
    base = Path(peft.PeftConfig.from_pretrained(tmp_path / "run").base_model_name_or_path)
    assert base == folder / "tiny.gguf"
    plain = transformers.AutoModelForCausalLM.from_pretrained(
        base.parent, gguf_file=base.name, quantization_config=transformers.GgufConfig(dequantize=True)
    )
    torch.testing.assert_close(
        logits(peft.PeftModel.from_pretrained(plain, tmp_path / "run")), expected, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("content", [b"PK\x03\x04 a zip", b"", b"GGUF\x03\x00\x00\x00\x01", "cut in its weights"])
def test_files_that_are_not_whole(folder, tmp_path, content):
    path, whole = tmp_path / "x.gguf", (folder / "tiny.gguf").read_bytes()
    path.write_bytes(content if isinstance(content, bytes) else whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=f"^`model_name_or_path: {path}` ") as caught:
        build(path)
    assert "\n" not in str(caught.value)


def test_several_files_and_no_package(folder, tmp_path, monkeypatch):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(ValueError, match="has 2 .gguf files .a.gguf ….; name one of them"):
        build(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None)
    with pytest.raises(ValueError, match="needs the package gguf: pip install gguf"):
        build(folder / "tiny.gguf")


@pytest.mark.slow
def test_records_by_the_tokenizer_in_the_file(folder, tmp_path, monkeypatch):
    """Read out once; from then on a folder of the cache gives the same."""
    file = tmp_path / "records.jsonl"
    talk = [{"role": "user", "content": "an ant?"}, {"role": "assistant", "content": "Six legs."}]
    file.write_text(json.dumps({"messages": talk}) + "\n")
    process = SimpleNamespace(model_name_or_path=str(folder), trust_remote_code=False, cache_dir=None)
    run = SimpleNamespace(seed=0, cache_dir=tmp_path / "cache", process=process)
    config = data.records.Config(path=str(file), block_size=64, eval_fraction=0)
    bundle = data.records.build(config, run)
    assert bundle.dims["vocab_size"] == len(bundle.processor.tokenizer) == len(TOKENS)
    row = bundle.train_dataset[0]
    assert bundle.processor.tokenizer.decode(row["input_ids"][row["labels"] != -100]) == "Six legs.<|im_end|>"
    own = transformers.AutoTokenizer.from_pretrained(folder, gguf_file="tiny.gguf")
    text = own.apply_chat_template(talk, tokenize=False)
    ids = own(text, add_special_tokens=False)["input_ids"]
    assert row["input_ids"][: len(ids)].tolist() == ids
    monkeypatch.setattr(gguf, "GGUFReader", None)  # not read again
    again = data.records.build(config, run).processor.tokenizer
    assert again(text, add_special_tokens=False)["input_ids"] == ids and again.chat_template == TEMPLATE


def test_the_check_takes_a_file(folder, tmp_path):
    """`model_name_or_path` may name the .gguf itself, but nothing that is not there, nor as one of our checkpoints."""
    (file,) = folder.glob("*.gguf")

    def problems(path, **keys):
        process = process_of(model_name_or_path=str(path), **keys)
        return adapt.check(models.auto.PARTS, process, models.auto.PROCESS_KEYS)

    assert problems(file) == [] == problems(folder)
    assert "is not a folder" in problems(tmp_path / "none.gguf")[0] and "is not a folder" in problems("none.gguf")[0]
    assert "is not a folder" in problems(file, load_pretrain=True)[0]


@pytest.mark.slow
def test_a_long_vocabulary_is_counted_and_not_read(folder, tmp_path, monkeypatch):
    """The model is the same without its tokens and their types, and a file that ends among them is refused."""
    reads, read = [], gguf.GGUFReader._get_str
    monkeypatch.setattr(gguf.GGUFReader, "_get_str", lambda *place: (reads.append(place), read(*place))[1])
    whole = build(folder)
    before, reads[:] = len(reads), []
    monkeypatch.setattr(pretrained, "MOST_READ", 3)
    model = build(folder)
    assert before - len(reads) >= len(TOKENS)
    assert model.config.to_dict() == whole.config.to_dict()
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), whole.parameters(), strict=True))
    content = (folder / "tiny.gguf").read_bytes()
    for end in (content.index(b"<|im_end|>"), content.index(b"tokenizer.ggml.token_type") + 60):
        (tmp_path / "cut.gguf").write_bytes(content[:end])
        with pytest.raises(ValueError, match="model_name_or_path"):
            build(tmp_path / "cut.gguf")


@pytest.mark.slow
def test_an_estimate_of_memory_reads_no_weights(folder):
    """The model is as large as the one that is loaded."""

    def described(model):
        return {name: (value.shape, value.dtype) for name, value in model.named_parameters()}

    with FakeTensorMode(allow_non_fake_inputs=True), without_first_values(from_meta, exchange):
        empty = build(folder)
    assert all(isinstance(value, FakeTensor) for value in empty.parameters())
    assert described(empty) == described(build(folder))
