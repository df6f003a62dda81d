"""What tests of records share: a small tokenizer, chat templates of the usual families, and conversations."""

import json
from types import SimpleNamespace

import numpy as np
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL = ["<pad>", "<s>", "<|im_start|>", "<|im_end|>", "<|eot|>", "</s>", "<|call|>", "<|/call|>"]
TALK = [
    {"role": "user", "content": "How many legs has a spider?"},
    {"role": "assistant", "content": "Eight legs, as ünder arachnids."},
    {"role": "user", "content": "And an ant? assistant"},
    {"role": "assistant", "content": "Six."},
]


def template(turn, prompt, before=""):
    """A template that writes `turn`, an expression of `m`, for each message, and `prompt` to ask for an answer."""
    return (
        f"{before}{{% for m in messages %}}{{{{ {turn} }}}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{{{{ {prompt} }}}}{{% endif %}}"
    )


CHATML = template(r"'<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n'", r"'<|im_start|>assistant\n'")
# The same, with a default system message and with transformers' own marks.
MARKED = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nHelp.<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Trims what is said, begins with a token of its own, has no prompt for an answer but a header.
TRIMMED = template(
    r"'[' + m.role + ']' + m.content | trim + ('<|im_end|>' if m.role == 'assistant' else '\n\n')",
    "'[assistant]'",
    "{{ '<s>' }}",
)
LLAMA = template(
    r"'<|im_start|>' + m.role + '\n\n' + (m.tool_calls | tojson if m.tool_calls else m.content | trim) + '<|eot|>'",
    r"'<|im_start|>assistant\n\n'",
    "{{ bos_token }}",
)
# Strictly alternating, no generation prompt, the system message within the last question.
MISTRAL = (
    "{% set system = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}"
    "{% set rest = messages[1:] if system else messages %}{{ bos_token }}"
    "{% for m in rest if m.role != 'tool' and not m.tool_calls %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
    "{% set users = rest | selectattr('role', 'equalto', 'user') | list %}{% for m in rest %}{% if m.role == 'user' %}"
    "{{ '[INST] ' + (system if m == users[-1] else '') + m.content + ' [/INST]' }}{% elif m.tool_calls %}"
    "{{ '[CALLS] [' }}{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}{{ ']</s>' }}"
    "{% elif m.role == 'tool' %}{{ '[RESULT] ' + m.content + '[/RESULT]' }}{% else %}"
    "{{ ' ' + m.content | trim + '</s>' }}{% endif %}{% endfor %}"
)
GEMMA = template(
    r"'<|im_start|>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim + '<|im_end|>\n'",
    r"'<|im_start|>model\n'",
    "{% if messages[0].role in ('system', 'developer') %}{{ raise_exception('no system role') }}{% endif %}",
)
# Leaves out earlier thoughts, thinks before the last answer, and can be asked not to.
THINKER = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% set content = m.content.split('</think>')[-1].lstrip() %}"
    "{% set thought = m.reasoning_content or m.content.split('</think>')[0].split('<think>')[-1].strip() "
    "if m.reasoning_content or '</think>' in m.content else '' %}{{ '<|im_start|>assistant\n' }}"
    "{% if loop.last %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}{{ content }}"
    "{% for c in m.tool_calls or [] %}{{ '<call>' }}{{ c.function | tojson }}{{ '</call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
# Asks for a thought that it leaves out of the answers; wants arguments of calls as text, and ends calls in tokens.
REASONER = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<user>' + m.content }}"
    "{% elif m.role == 'tool' %}{{ '<tool>' + m.content + '</tool>' }}{% else %}{{ '<assistant>' }}"
    "{% for c in m.tool_calls or [] %}{{ '<|call|>' + c.function.name + '\n' + c.function.arguments + '<|/call|>' }}"
    "{% endfor %}{{ m.content.split('</think>')[-1] + '</s>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant><think>\n' }}{% endif %}"
)
OPEN = template(r"m.role + ': ' + m.content + '\n'", "'assistant:'")


def make_tokenizer():
    """A byte-level BPE tokenizer with real merges, and ChatML as its template."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator([json.dumps(TALK) * 4, "the assistant and the user of the spider"] * 4, trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="<|im_end|>", chat_template=CHATML
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [SPECIAL[2], *SPECIAL[4:]]})
    return tokenizer


def run_of(tmp_path, **process):
    process = {"model_name_or_path": None, "trust_remote_code": False, "cache_dir": None, **process}
    return SimpleNamespace(seed=3, cache_dir=tmp_path / "cache", process=SimpleNamespace(**process))


def write(folder, records, name="records.jsonl"):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return str(folder / name)


def learned_text(tokenizer, encoded):
    """What the learned tokens say, run by run."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], encoded.learned.astype(int), [0]]))).reshape(-1, 2)
    return [tokenizer.decode(encoded.ids[begin:end]) for begin, end in edges]
