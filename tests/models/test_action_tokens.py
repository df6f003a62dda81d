"""Actions as tokens: bins by hand, FAST against scipy's transform, and the head that writes them."""

import copy
import json

import numpy as np
import pytest
import scipy.fft
import torch
from vla_policies import ACTION, CHUNK, FAMILIES, batch_of, policy_of

from models.vla.action_tokens import BinTokens, FastTokens, read_fast, rounded, train_fast
from models.vla.config import Config

STEPS, DIMS = 16, 4


def smooth_chunks(count, steps=STEPS, dims=DIMS, seed=0):
    """Sums of slow waves (count, steps, dims) within [-1, 1]."""
    generator = np.random.default_rng(seed)
    time = np.linspace(0, 1, steps)[None, :, None]
    frequency, phase = (generator.uniform(0, most, (count, 1, dims)) for most in (1.5, 6.28))
    return np.sin(6.28 * frequency * time + phase) * generator.uniform(0.2, 1, (count, 1, dims))


@pytest.fixture(scope="module")
def settings():
    return train_fast(smooth_chunks(500), 300)


def test_bins_by_hand():
    tokens = BinTokens(2, 2)
    (row,) = tokens.encode(np.array([[[-1, 1], [0, -2]]]))
    assert row.tolist() == [0, 255, 128, 0]
    chunks, malformed = tokens.decode([row])
    assert malformed == 0 and chunks.tolist() == [[[-255 / 256, 255 / 256], [1 / 256, -255 / 256]]]
    values = np.random.default_rng(0).uniform(-1, 1, (50, 2, 2))
    back, _ = tokens.decode(tokens.encode(values))
    assert np.abs(back - values).max() <= 1 / 256 and len(np.unique(np.concatenate(tokens.encode(values)))) > 100


def test_coefficients_are_those_of_scipy():
    chunks = smooth_chunks(20)
    expected = np.rint(scipy.fft.dct(chunks, axis=1, norm="ortho") * 10)
    np.testing.assert_array_equal(rounded(chunks, 10), expected)


@pytest.mark.slow
def test_fast_restores_chunks_to_the_rounding(settings):
    """The transform is orthonormal, so that the error of a chunk is that of its rounded coefficients."""
    chunks = smooth_chunks(100, seed=1)
    tokens = FastTokens(json.loads(json.dumps(settings)), STEPS, DIMS)
    rows = tokens.encode(chunks)
    back, malformed = tokens.decode(rows)
    own = scipy.fft.dct(chunks, axis=1, norm="ortho")
    kept = np.clip(np.rint(own * 10), settings["low"], settings["high"]) / 10
    np.testing.assert_allclose(back, scipy.fft.idct(kept, axis=1, norm="ortho"), atol=1e-12)
    assert malformed == 0 and np.abs(back - chunks).max() < 0.2
    lengths = [len(row) for row in rows]
    assert np.mean(lengths) < STEPS * DIMS / 2, "fewer tokens than numbers"
    assert all(sum(tokens.numbers[row]) == STEPS * DIMS for row in rows)
    finer = FastTokens(train_fast(smooth_chunks(500), 600, scale=50), STEPS, DIMS)
    assert np.abs(finer.decode(finer.encode(chunks))[0] - chunks).max() < np.abs(back - chunks).max() / 3


def test_fast_is_not_normalised_by_the_chunk(settings):
    """A chunk and half of it have different tokens, and come back as they were."""
    tokens = FastTokens(settings, STEPS, DIMS)
    chunk = smooth_chunks(1)
    back, _ = tokens.decode(tokens.encode(np.concatenate((chunk, chunk / 2))))
    assert np.abs(back[0] - 2 * back[1]).max() < 0.3
    assert np.abs(back[1]).max() < 0.7 * np.abs(back[0]).max()


def test_malformed_rows_are_filled_and_counted(settings):
    bins = BinTokens(2, 2)
    chunks, malformed = bins.decode([[255], [0, 0, 0, 0, 255], [255] * 4, []])
    assert malformed == 3 and chunks[0].ravel().tolist() == [255 / 256, 0, 0, 0]
    assert chunks[1].ravel().tolist() == [-255 / 256] * 4 and not chunks[3].any()
    fast = FastTokens(settings, STEPS, DIMS)
    (row,) = fast.encode(smooth_chunks(1))
    chunks, malformed = fast.decode([row[:1], [*row, *row], row])
    assert malformed == 2 and np.isfinite(chunks).all()
    np.testing.assert_array_equal(chunks[1], chunks[2])


@pytest.mark.parametrize("change", [{"bpe": {}}, {"scale": None}, {"chunk_size": 8}])
def test_settings_that_cannot_be_used(settings, tmp_path, change):
    with pytest.raises(ValueError, match="action tokenizer"):
        FastTokens({name: value for name, value in {**settings, **change}.items() if value is not None}, STEPS, DIMS)
    without_normalization = json.dumps({**settings, "version": 1})
    for content in ("{", "[]", '{"kind": "slow"}', without_normalization):
        (tmp_path / "fast.json").write_text(content)
        with pytest.raises(ValueError, match=r"fast\.json"):
            read_fast(tmp_path / "fast.json")
    with pytest.raises(ValueError, match=r"fast\.json"):
        read_fast(tmp_path / "none" / "fast.json")


def test_too_few_tokens_for_the_coefficients():
    with pytest.raises(ValueError, match="10 tokens are fewer"):
        train_fast(smooth_chunks(10), 10)


# ---- the head ----


def backbone_with(vocabulary, family="smolvlm"):
    return {"text_config": {**FAMILIES[family]["text_config"], "vocab_size": vocabulary}}


def policy_with(tmp_path, tokens="bins", vocabulary=300, **keys):
    if tokens == "fast":
        file = tmp_path / "fast.json"
        file.write_text(json.dumps(train_fast(smooth_chunks(300, CHUNK, ACTION), 120)))
        tokens = str(file)
    return policy_of(backbone=backbone_with(vocabulary), head="tokens", action_tokenizer=tokens, **keys)


def batch_within(size=3, **options):
    """A batch whose actions FAST has learnt."""
    batch = batch_of(size, **options)
    batch["actions"] = torch.from_numpy(smooth_chunks(size, CHUNK, ACTION, seed=3)).float()
    return batch


@pytest.mark.slow
@pytest.mark.keys("model(vla).action_tokenizer")
@pytest.mark.parametrize("tokens", ["bins", "fast"])
@pytest.mark.parametrize("state_as", ["prefix", "suffix"])
def test_the_loss_is_that_of_each_token_after_those_before_it(tmp_path, tokens, state_as):
    """By hand: each sample alone, each token from a new reading of all before it."""
    policy = policy_with(tmp_path, tokens, state_as=state_as).eval()
    head, batch = policy.action_head, batch_within()
    total, count = 0.0, 0
    with torch.no_grad():
        for row in range(3):
            one = {name: value[row : row + 1] for name, value in batch.items()}
            observed = [one.get(name) for name in ("state", "images", "image_mask", "prompt_ids", "prompt_mask")]
            prefix, state = policy.read(*observed)
            ids = head.tokens.encode(one["actions"].double().numpy())[0].tolist()
            real = CHUNK - int(one["is_pad"].sum())
            losses = []
            for place, token in enumerate(ids):
                context = policy.condition(prefix, state)
                for before in ids[:place]:
                    words = torch.tensor([[head.first + before]])
                    context = policy.backbone.append(context, policy.backbone.embed(words), torch.ones(1, 1) > 0)
                logits = policy.backbone.logits(context.last)[0, head.first :]
                losses.append(float(-logits.log_softmax(-1)[token]))
            if tokens == "bins":
                total += sum(losses[: real * ACTION])
            else:
                total += sum(losses) * real / CHUNK
            count += real * ACTION
        output = policy(**batch)
    assert float(output["losses"]["action"]) == pytest.approx(total / count, abs=1e-4)
    assert int(policy.loss_items(batch)["action"]) == count


@pytest.mark.slow
@pytest.mark.parametrize("tokens", ["bins", "fast"])
def test_a_policy_learns_to_write_a_chunk(tmp_path, tokens):
    """Greedy writing after an overfit gives the demonstrated chunks up to the rounding; the batch does not matter."""
    policy, batch = policy_with(tmp_path, tokens, num_images=0), batch_within(num_images=0)
    batch["is_pad"][:] = False
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        policy.train()(**batch)["loss"].backward()
        optimizer.step()
    policy.eval()
    expected, _ = policy.action_head.tokens.decode(policy.action_head.tokens.encode(batch["actions"].double().numpy()))
    observed = {name: value for name, value in batch.items() if name not in ("actions", "is_pad")}
    with torch.no_grad():
        actions = policy(**observed)["actions"]
        alone = [policy(**{name: value[[row]] for name, value in observed.items()})["actions"] for row in range(3)]
    np.testing.assert_allclose(actions.numpy(), expected, atol=1e-6)
    assert torch.equal(actions, torch.cat(alone))
    clone = copy.deepcopy(policy)
    assert actions.dtype == torch.float32 and clone.action_head.backbone is clone.backbone is not policy.backbone


@pytest.mark.slow
@pytest.mark.parametrize("tokens", ["bins", "fast"])
def test_whatever_the_network_writes_is_a_chunk(tmp_path, tokens):
    policy = policy_with(tmp_path, tokens).eval()
    with torch.no_grad():
        for _ in range(3):
            for parameter in policy.parameters():
                parameter.normal_()
            actions = policy(**{name: value for name, value in batch_of().items() if name not in ("actions", "is_pad")})
    assert actions["actions"].shape == (3, CHUNK, ACTION) and actions["actions"].isfinite().all()


@pytest.mark.slow
def test_the_tokens_are_saved_with_the_policy(tmp_path):
    policy = policy_with(tmp_path, "fast", target_tokens=4).eval()
    policy.save_pretrained(tmp_path / "saved")
    (tmp_path / "fast.json").unlink()
    from models.vla import load

    again, batch = load(tmp_path / "saved"), batch_within(target=4)
    with torch.no_grad():
        one, other = policy(**batch), again(**batch)
    assert torch.equal(one["actions"], other["actions"]) and torch.equal(one["loss"], other["loss"])


@pytest.mark.slow
def test_bad_configurations(tmp_path):
    with pytest.raises(ValueError, match="model.detach_backbone"):
        Config(head="tokens", detach_backbone=True, state_as="suffix")
    with pytest.raises(ValueError, match="256 tokens but the language model knows 64"):
        policy_with(tmp_path, vocabulary=64)
    with pytest.raises(ValueError, match="model.action_tokenizer"):
        policy_with(tmp_path, str(tmp_path / "nothing.json"))
