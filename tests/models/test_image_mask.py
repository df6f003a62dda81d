"""Images that do not exist: whatever their pixels, policies answer and learn the same."""

import pytest
import torch

pytestmark = pytest.mark.slow

masking = pytest.mark.parametrize("name", ["act", "diffusion", "flow", "regression"])
NORMS = {"backbone_norm": "batch"}  # whose statistics would carry a masked image into the other samples


def masked(batch):
    """A batch of three samples with two images, of which the second sample lacks one and the third both."""
    data = batch(2, size=3)
    data["image_mask"] = torch.tensor([[True, True], [True, False], [False, False]])
    changed = dict(data, images=data["images"].clone())
    changed["images"][~data["image_mask"]] = 255 - changed["images"][~data["image_mask"]]
    return data, changed


@masking
@pytest.mark.parametrize("per_camera", [False, True])
def test_pixels_of_a_masked_image_have_no_influence(build, batch, name, per_camera):
    if name == "act" and per_camera:
        pytest.skip("ACT has one backbone")
    net = build(name, 2, **NORMS, **({"backbone_per_camera": True} if per_camera else {}))
    data, changed = masked(batch)
    results = []
    for given in (data, changed):
        torch.manual_seed(0)
        net.train().zero_grad()
        statistics = {key: value.clone() for key, value in net.state_dict().items()}
        loss = net(**given)["loss"]
        loss.backward()
        results.append([loss, *(p.grad for p in net.parameters()), *net.state_dict().values()])
        net.load_state_dict(statistics)
        results[-1] += [net.eval()(**given)["loss"], net(**given)["actions"]]
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@masking
def test_a_mask_that_is_true_changes_nothing_and_a_false_one_something(build, batch, name):
    net, data = build(name, 2).eval(), batch(2)
    del data["actions"], data["is_pad"]
    whole = net(**data)["actions"]
    everything = torch.ones(2, 2, dtype=torch.bool)
    torch.testing.assert_close(net(**data, image_mask=everything)["actions"], whole)
    everything[1, 0] = False
    parts = net(**data, image_mask=everything)["actions"]
    torch.testing.assert_close(parts[0], whole[0])
    assert not torch.allclose(parts[1], whole[1])


@masking
def test_a_robot_without_a_camera_gets_the_actions_of_its_sample(build, batch, name):
    net, (data, _) = build(name, 2).eval(), masked(batch)
    inputs = {key: data[key][1:2] for key in ("state", "images", "image_mask")}
    torch.testing.assert_close(net.select_action(inputs), net(**inputs)["actions"][0, 0])


def test_a_policy_without_a_mask_refuses_it(build, batch):
    data, _ = masked(batch)
    with pytest.raises(ValueError, match="mlp has no mask.*missing_cameras"):
        build("mlp", 2)(**data)
