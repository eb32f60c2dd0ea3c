"""Router statistics against a direct computation, and generation with experts left out against the mixture assembled without them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from common.errors import DataError, LayoutError, NotFoundError, UsageError
from common.modeling.loading import load_model, load_router_stats
from common.textdata.tokens import load_tokenizer
from coordinator.compute.generate import allowed_experts, expert_names, generate_text
from coordinator.compute.moments import public_moments
from tests.unit.compute.small_models import make_mixture, topics


def test_moments_are_those_of_stock_transformers(anchor: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    texts = [text[:400] for text in topics()[:5]]
    out = public_moments(anchor, texts, out=tmp_path / "router.safetensors")
    model, tokenizer = transformers.AutoModelForCausalLM.from_pretrained(anchor), transformers.AutoTokenizer.from_pretrained(anchor)
    inputs: dict[int, list[torch.Tensor]] = {}
    for layer, block in enumerate(model.model.layers):
        block.mlp.register_forward_pre_hook(lambda _, args, layer=layer: inputs.setdefault(layer, []).append(args[0].flatten(0, 1)))
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        for start in range(0, len(ids) - 1, 64):
            with torch.no_grad():
                model(torch.tensor([ids[start : start + 65][:-1]]))
    held = load_file(out)
    for layer in range(2):
        x = torch.cat(inputs[layer])
        torch.testing.assert_close(held[f"model.layers.{layer}.mlp.gate.input_mean"], x.mean(0), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(held[f"model.layers.{layer}.mlp.gate.input_second_moment"], x.T @ x / len(x), atol=1e-5, rtol=1e-4)
        row = held[f"model.layers.{layer}.mlp.gate.weight"]
        assert row.shape == (1, 32)
        assert not row.any()
    assert len(held) == 6


def test_moments_are_read_as_the_anchors_statistics(anchor: Path, tmp_path: Path) -> None:
    folder = tmp_path / "anchor"
    shutil.copytree(anchor, folder)
    assert public_moments(folder, topics()[:3], max_tokens=200) == folder / "router.safetensors"
    stats = load_router_stats(folder)
    assert [tuple(mean.shape) for mean in stats.mean] == [(32,), (32,)]
    covariance = stats.second[0] - stats.mean[0].outer(stats.mean[0])
    assert float(torch.linalg.eigvalsh(covariance.double()).min()) > -1e-4


def test_no_public_text_is_refused(anchor: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        public_moments(anchor, [], out=tmp_path / "router.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_leaving_an_expert_out_gives_the_text_of_the_mixture_without_it(anchor: Path, mixture: Path, tmp_path: Path) -> None:
    without = make_mixture(anchor, tmp_path / "without", names=["code"], top_k=2)
    prompt = topics()[0][:60]
    excluded = "".join(generate_text(mixture, prompt, exclude=["law"], max_new_tokens=30))
    assert excluded == "".join(generate_text(without, prompt, max_new_tokens=30))
    assert excluded
    ids = torch.tensor([load_tokenizer(mixture).encode(prompt)[:40]])
    whole = load_model(mixture)
    names = expert_names(mixture, 3)
    with torch.no_grad():
        masked, rebuilt = whole(ids, allowed=allowed_experts(names, ["law"])), load_model(without)(ids)
        torch.testing.assert_close(masked, rebuilt, atol=1e-5, rtol=0)
        assert not torch.allclose(masked, whole(ids), atol=1e-3)


def test_generation_is_greedy_like_stock_transformers(mixture: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model, tokenizer = transformers.AutoModelForCausalLM.from_pretrained(mixture), transformers.AutoTokenizer.from_pretrained(mixture)
    prompt = topics()[1][:50]
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    expected = tokenizer.decode(model.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :], skip_special_tokens=True)
    assert "".join(generate_text(mixture, prompt, max_new_tokens=20)) == expected


def test_seeds_and_pieces(anchor: Path) -> None:
    pieces = list(generate_text(anchor, "The ", max_new_tokens=40, temperature=1.5, seed=3))
    assert all(pieces)
    assert pieces == list(generate_text(anchor, "The ", max_new_tokens=40, temperature=1.5, seed=3))
    assert pieces != list(generate_text(anchor, "The ", max_new_tokens=40, temperature=1.5, seed=4))
    assert list(generate_text(anchor, "", max_new_tokens=2)) != []


def test_names_of_experts(mixture: Path, anchor: Path, tmp_path: Path) -> None:
    assert expert_names(mixture, 3) == ["public", "code", "law"]
    assert expert_names(anchor, 3) == ["public", "expert-1", "expert-2"]
    for content in ("{", json.dumps({"experts": [{"slot": 9, "name": "x"}]}), json.dumps({"experts": [3]})):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(LayoutError):
            expert_names(tmp_path, 3)
    (tmp_path / "manifest.json").write_text("[]")
    assert expert_names(tmp_path, 2) == ["public", "expert-1"]


def test_bad_exclusions(mixture: Path, anchor: Path) -> None:
    with pytest.raises(NotFoundError, match="code, law"):
        generate_text(mixture, "x", exclude=["medicine"])
    with pytest.raises(UsageError, match="public"):
        generate_text(mixture, "x", exclude=["public"])
    with pytest.raises(UsageError, match="dense"):
        generate_text(anchor, "x", exclude=["code"])
    with pytest.raises(UsageError):
        generate_text(anchor, "x" * 2000)
