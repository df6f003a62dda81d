"""Texts that a vision-language-action policy learns and writes, against torch's cross entropy and teacher forcing."""

import pytest
import torch
import torch.nn.functional as F
from vla_policies import EOS, batch_of, config_of, policy_of

import models.vla

pytestmark = pytest.mark.slow


def writer(**keys):
    return policy_of(target_tokens=6, **keys)


def logits_of(net, batch):
    """Logits (B, T, V) of each target token by one pass over images, prompt, state and the tokens before it."""
    prefix, _ = net.read(batch["state"], batch["images"], None, batch["prompt_ids"], batch["prompt_mask"])
    texts = net.backbone.append(prefix, net.backbone.embed(batch["target_ids"]), batch["target_mask"])
    hidden = torch.cat((prefix.hidden[:, -1:], texts.hidden[:, prefix.mask.shape[1] :]), dim=1)[:, :-1]
    weight = net.get_input_embeddings().weight if net.backbone.is_tied else net.backbone.lm_head.weight
    return hidden @ weight.T


@pytest.mark.keys("llm_loss_weight", "model(vla).target_tokens")
@pytest.mark.parametrize("family", ["smolvlm", "gemma3"])
def test_the_language_loss_by_hand(family):
    net, batch = policy_of(family, target_tokens=6, process={"llm_loss_weight": 0.3}).train(), batch_of(target=4)
    assert net.backbone.is_tied == (family == "gemma3") and hasattr(net.backbone, "lm_head") == (family != "gemma3")
    torch.manual_seed(0)
    output = net(**batch)
    labels = batch["target_ids"].masked_fill(~batch["target_loss_mask"], -100)
    expected = F.cross_entropy(logits_of(net, batch).flatten(0, 1), labels.flatten())
    torch.testing.assert_close(output["losses"]["language"], expected)
    torch.testing.assert_close(output["loss"], output["losses"]["action"] + 0.3 * expected)
    assert net.loss_weights == {"language": 0.3}
    items = net.loss_items(batch)
    assert (int(items["action"]), int(items["language"])) == (10 * 3, int(batch["target_loss_mask"].sum()))
    batch["target_loss_mask"][:] = False
    assert net(**batch)["losses"]["language"] == 0


def test_the_weight_of_the_language_loss_is_saved(tmp_path):
    policy_of(target_tokens=6, process={"llm_loss_weight": 0.3}).save_pretrained(tmp_path)
    assert models.vla.load(tmp_path).loss_weights == {"language": 0.3}


@torch.no_grad()
def test_predictions_in_evaluation_are_the_likeliest_tokens():
    net, batch = writer().eval(), batch_of(target=4)
    assert torch.equal(net(**batch)["target_predictions"], logits_of(net, batch).argmax(dim=-1))


@pytest.mark.keys("model(vla).eos_token_id")
@pytest.mark.parametrize("family", ["smolvlm", "qwen2_vl"])
@torch.no_grad()
def test_a_written_text_is_the_likeliest_token_after_token(family):
    """Each token is the arg max of a pass without a cache over those before it; after the end there is nothing."""
    first = policy_of(family, target_tokens=6).eval()
    batch = {key: value for key, value in batch_of().items() if key not in ("actions", "is_pad")}
    eos = int(first(**batch)["target_ids"][0, 2])  # so that the first sample ends early
    net = policy_of(family, target_tokens=6, eos_token_id=eos).eval()
    assert config_of().eos_token_id == EOS
    output = net(**batch)
    for index in range(3):
        one, written = {key: value[index : index + 1] for key, value in batch.items()}, []
        while len(written) < 6 and (not written or written[-1] != eos):
            ids = torch.tensor([[*written, 0]])
            given = {**one, "target_ids": ids, "target_mask": torch.ones_like(ids, dtype=torch.bool)}
            written.append(int(logits_of(net, given)[0, -1].argmax()))
        found = output["target_ids"][index].tolist()
        assert found[: len(written)] == written and set(found[len(written) :]) <= {eos}
        # The policy acts on its own text as on a demonstrated one.
        ids = torch.tensor([written])
        mask = torch.ones_like(ids, dtype=torch.bool)
        prefix, state = net.read(one["state"], one["images"], None, one["prompt_ids"], one["prompt_mask"])
        taught = net.backbone.append(prefix, net.backbone.embed(ids), mask)
        torch.testing.assert_close(
            net.chunks(net.condition(taught, state), state)[0], output["actions"][index], atol=1e-5, rtol=1e-5
        )
    assert (output["target_ids"][0, 2:] == eos).all()


@torch.no_grad()
def test_acting_follows_the_text():
    net, batch = writer().eval(), batch_of(target=4)
    other = {**batch, "target_ids": batch["target_ids"] + 3}
    assert torch.equal(net(**batch)["actions"], net(**other)["actions"])  # its own text
    assert not torch.equal(net(**batch)["losses"]["action"], net(**other)["losses"]["action"])  # the demonstrated one
    with pytest.raises(ValueError, match="use_reasoning"):
        net(**batch_of())
    inputs = {key: value[:1] for key, value in batch.items() if key in ("state", "images", "prompt_ids", "prompt_mask")}
    assert net.select_action(inputs).shape == (3,)
