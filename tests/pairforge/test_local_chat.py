"""The local model through the real loading code: a tiny Qwen3-VL with random weights, saved to a folder.

What it says is noise, so as a judge it must end in a typed trouble; what it says must equal a direct library call.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pairforge.image import Pixels, encode_png
from pairforge.local_chat import TransformersChat
from pairforge.protocols import ASPECTS, BackendError, Trouble
from pairforge.remote_base import ChatRequest, Picture
from qc.judges import ChatJudge

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SPECIAL = ("endoftext", "im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad")


def byte_characters() -> list[str]:
    """The 256 characters that byte-level tokenizers write bytes as."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    table = {byte: chr(byte) for byte in plain} | {byte: chr(256 + index) for index, byte in enumerate(others)}
    return [table[byte] for byte in range(256)]


TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("qwen3vl")
    tokenizer = transformers.Qwen2Tokenizer(
        vocab={character: index for index, character in enumerate(byte_characters())},
        merges=[],
        extra_special_tokens=[f"<|{name}|>" for name in SPECIAL],
    )
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in SPECIAL}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 32768,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [2, 1, 1],
            "mrope_interleaved": True,
        },
    }
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 32,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1, 2],
    }
    config = transformers.Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
    )
    model = transformers.Qwen3VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = ids["im_end"]
    model.generation_config.pad_token_id = ids["endoftext"]
    model.save_pretrained(path)
    processor = transformers.Qwen3VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(patch_size=16),
        tokenizer=tokenizer,
        video_processor=transformers.Qwen3VLVideoProcessor(),
        chat_template=TEMPLATE,
    )
    processor.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def images(photos: dict[str, Pixels]) -> tuple[Pixels, Pixels]:
    return np.ascontiguousarray(photos["coffee"][:64, :96]), np.ascontiguousarray(photos["chelsea"][:64, :64])


def request_of(images: tuple[Pixels, ...], max_output_tokens: int = 12) -> ChatRequest:
    pictures = tuple(Picture(encode_png(image)) for image in images)
    return ChatRequest("Compare.", pictures, max_output_tokens=max_output_tokens)


def direct(folder: Path, images: tuple[Pixels, ...], tokens: int) -> str:
    """The same question through the library alone."""
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
    content: list[dict[str, Any]] = [{"type": "image", "image": Image.fromarray(image)} for image in images]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": "Compare."}]}]
    inputs = processor.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    found = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    answer: str = processor.decode(found[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return answer


def test_answers_equal_a_direct_call(
    folder: Path, images: tuple[Pixels, Pixels], monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = TransformersChat(str(folder))
    # A random model never ends by itself; every token counts as an end, so that the answer is not taken for cut.
    monkeypatch.setattr(chat, "_ends", lambda: set(range(300)))
    reply = chat.ask(request_of(images))
    assert reply.text == direct(folder, images, 12)
    assert reply.usage.cost_usd == 0.0 and reply.usage.output_tokens == 12 and reply.usage.input_tokens > 20
    assert reply == chat.ask(request_of(images))
    assert chat.ask(request_of(images[::-1])).data != b"" and reply.mime == "text/plain"


def test_a_cut_answer_is_malformed(folder: Path, images: tuple[Pixels, Pixels]) -> None:
    with pytest.raises(BackendError, match="cut after 5 tokens") as caught:
        TransformersChat(str(folder), max_new_tokens=5).ask(request_of(images))
    assert caught.value.trouble is Trouble.MALFORMED


def test_a_random_model_judges_nothing(
    folder: Path, images: tuple[Pixels, Pixels], monkeypatch: pytest.MonkeyPatch
) -> None:
    chat: Any = TransformersChat(str(folder), max_new_tokens=8)
    judge = ChatJudge(chat)
    for ends in (set(), set(range(300))):
        monkeypatch.setattr(chat, "_ends", lambda ends=ends: ends)
        with pytest.raises(BackendError) as caught:
            judge.judge(images[0], images[0], "noise")
        assert caught.value.trouble is Trouble.MALFORMED


def test_an_answer_that_is_right_is_read(
    folder: Path, images: tuple[Pixels, Pixels], monkeypatch: pytest.MonkeyPatch
) -> None:
    chat: Any = TransformersChat(str(folder), max_new_tokens=8)
    judge = ChatJudge(chat)
    good = json.dumps({**{name: {"reason": "x", "score": 90} for name in ASPECTS}, "verdict": "Accept"})
    monkeypatch.setattr(chat, "_ends", lambda: set(range(300)))
    monkeypatch.setattr(chat._processor, "decode", lambda *_, **__: good)
    assert judge.judge(images[0], images[0], "noise").scores == dict.fromkeys(ASPECTS, 90)
    assert judge.name == "transformers" and "judge" in judge.revision


def test_revision_follows_the_weights(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    same = TransformersChat(str(folder)).revision
    assert TransformersChat(str(tmp_path)).revision == same
    weights = bytearray((tmp_path / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(bytes(weights))
    assert TransformersChat(str(tmp_path)).revision != same


def test_folders_that_hold_no_model_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no folder of a model"):
        TransformersChat("Qwen/Qwen3-VL-8B-Instruct")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be loaded"):
        TransformersChat(str(tmp_path))
    with pytest.raises(ValueError, match="cannot be loaded"):
        TransformersChat(str(folder), dtype="float9")
    with pytest.raises(ValueError, match="not above 0"):
        TransformersChat(str(folder), max_new_tokens=0)
