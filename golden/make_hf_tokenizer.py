"""Makes the tokenizer fixtures of crates/sterna-hf: small tokenizers, and what transformers does with them.

Writes tests/fixtures/tokenizers/NAME/ (trained here on the sentences below), tests/fixtures/tokenizers.json
(ids, offsets and special tokens by AutoTokenizer) and tests/fixtures/smollm2.json (the same for the real
SmolLM2-135M-Instruct tokenizer, whose folder is the argument). The seed is in the file. Run with
transformers 4.57 and tokenizers 0.22:

    python golden/make_hf_tokenizer.py FOLDER_OF_SMOLLM2
"""

import json
import pathlib
import random
import shutil
import sys

import tokenizers
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

FIXTURES = pathlib.Path(__file__).parents[1] / "crates/sterna-hf/tests/fixtures"
SEED = 20261121
VOCAB_SIZE = 420

SENTENCES = [
    "The tern flies from the Arctic to the Antarctic and back again, every year of its life.",
    "What is the longest sequence that this model can be trained on, and how long does it take?",
    "def add(a, b):\n    return a + b\n",
    "Numbers like 1234567890 and 3.14159, dates like 2026-11-21.",
    "user assistant system Hello there! How are you today? I am fine, thank you.",
    "Der Vogel fliegt weit. L'oiseau vole loin. El pájaro vuela lejos. 鳥は遠くへ飛ぶ。",
] * 4


def lines():
    rng = random.Random(SEED)
    fixed = [
        "",
        " ",
        "\n",
        "  leading and trailing  ",
        "tabs\tand\nnew\r\nlines\n\n\n",
        "Hello, world!",
        "hello world hello  world   hello",
        "I'll, you've, he'd, DON'T, it's",
        "1234567 8 90 3.14 1,000,000",
        "e\u0301 vs \u00e9, \ufb01 ligature, \u212b",
        "日本語と中文 mixed with English",
        "한국어 텍스트",
        "שלום עולם مرحبا بالعالم",
        "👩‍👩‍👧 family, 🇫🇷 flag, 👍🏽",
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|><|im_end|> <|endoftext|>x<|endoftext|>",
        "<s>inside</s> text <unk> <pad>",
        "text<extra>text <extra>  text",
        "<think>\nhm\n</think>\n\nanswer",
        "\u00a0nbsp\u2003em\u3000ideographic",
        "\x00\x01\x7f control",
        "a" * 100,
        "x = {'key': [1, 2, {'n': None}]}  # comment",
        "https://example.org/path?q=1&r=%20#frag",
        "\ufffd \U0001f9ff \U00010348",
    ]
    words = " ".join(SENTENCES[:6]).split()
    alphabet = [chr(c) for c in [*range(32, 127), *range(0xC0, 0x180), *range(0x400, 0x430), *range(0x4E00, 0x4E20)]]
    alphabet += ["\n", "\t", "  ", "😀", "e\u0301", "<|im_end|>", "\u200d"]
    for _ in range(60):
        fixed.append(" ".join(rng.choices(words, k=rng.randint(1, 14))))
    for _ in range(60):
        fixed.append("".join(rng.choices(alphabet, k=rng.randint(1, 30))))
    return fixed


def train(model, pre_tokenizer, special_tokens, normalizer=None, alphabet=()):
    tokenizer = Tokenizer(model)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=special_tokens, initial_alphabet=list(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def save(name, tokenizer, config, **files):
    folder = FIXTURES / "tokenizers" / name
    folder.mkdir(parents=True)
    compact = json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, separators=(",", ":"))
    (folder / "tokenizer.json").write_text(compact)
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
    for file, value in files.items():
        (folder / f"{file}.json").write_text(json.dumps(value, indent=1) + "\n")


def flags(content, special=True, **kwargs):
    base = {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return {**base, "special": special, **kwargs}


def byte_level(add_prefix_space=False):
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = train(
        models.BPE(),
        pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space),
        specials,
        alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def make_folders():
    shutil.rmtree(FIXTURES / "tokenizers", ignore_errors=True)
    # As SmolLM2: tokens with flags in the config, one of them not in tokenizer.json.
    decoder = {
        "0": flags("<|endoftext|>"),
        "1": flags("<|im_start|>"),
        "2": flags("<|im_end|>"),
        "420": flags("<extra>", special=False, lstrip=True),
    }
    config = {
        "tokenizer_class": "GPT2Tokenizer",
        "added_tokens_decoder": decoder,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "model_max_length": 8192,
        "chat_template": "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}",
    }
    save("gpt2", byte_level(), config)
    # The class's own defaults, a prefix space that the config takes back, padding and truncation
    # left in the file, a special token that no file has.
    tokenizer = byte_level(add_prefix_space=True)
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=7)
    config = {
        "tokenizer_class": "GPT2TokenizerFast",
        "add_prefix_space": False,
        "pad_token": "<pad>",
        "model_max_length": 1000000000000000019884624838656,
        "chat_template": [
            {"name": "tool_use", "template": "tools"},
            {"name": "default", "template": "{{ messages[0].content }}{{ eos_token }}{{ pad_token }}"},
        ],
    }
    save("gpt2-defaults", tokenizer, config)
    save("gpt2-prefix", byte_level(), {"tokenizer_class": "GPT2TokenizerFast", "add_prefix_space": True})
    # As Llama 2: metaspace by normalizer, byte fallback, a processor that adds <s>, roles in the
    # legacy special_tokens_map.json, no padding token.
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = train(
        models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True),
        None,
        ["<unk>", "<s>", "</s>", *byte_tokens],
        normalizer=normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
    )
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] < 3]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    special_tokens_map = {
        "bos_token": flags("<s>"),
        "eos_token": "</s>",
        "unk_token": flags("<unk>"),
        "additional_special_tokens": ["<extra>"],
    }
    save("llama", tokenizer, {"tokenizer_class": "LlamaTokenizer"}, special_tokens_map=special_tokens_map)
    # As Qwen2: a pattern, then bytes; NFC; null for no such token.
    pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer = train(
        models.BPE(),
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
        [AddedToken("<|endoftext|>", special=True), AddedToken("<|im_start|>", special=True)],
        normalizer=normalizers.NFC(),
        alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": {
            "0": flags("<|endoftext|>"),
            "1": flags("<|im_start|>"),
            "420": flags("<|im_end|>"),
            "421": flags("<think>", special=False),
            "422": flags("</think>", special=False),
        },
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "unk_token": None,
    }
    save("qwen2", tokenizer, config)


def measure(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    encoded = []
    for line in lines():
        out = tokenizer(line, add_special_tokens=False, return_offsets_mapping=True)
        offsets = [position for pair in out["offset_mapping"] for position in pair]
        decoded = tokenizer.decode(out["input_ids"], clean_up_tokenization_spaces=False)
        case = {"ids": out["input_ids"], "offsets": offsets}
        # Most decode to themselves.
        encoded.append(case if decoded == line else {**case, "decoded": decoded})
    return {
        "special_tokens": tokenizer.special_tokens_map,
        "all_special_ids": sorted(set(tokenizer.all_special_ids)),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "vocab_size": len(tokenizer),
        "encoded": encoded,
    }


def write(file, value):
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace('{"ids"', '\n{"ids"')
    (FIXTURES / file).write_text(text + "\n")


def main():
    make_folders()
    versions = {"transformers": transformers.__version__, "tokenizers": tokenizers.__version__}
    measured = {
        folder.name: measure(folder) for folder in sorted((FIXTURES / "tokenizers").iterdir()) if folder.is_dir()
    }
    # The lines are long enough for one file each.
    for name, values in measured.items():
        write(f"tokenizers/{name}/golden.json", {**versions, **values})
    write("lines.json", lines())
    write("smollm2.json", {**versions, **measure(sys.argv[1])})


main()
