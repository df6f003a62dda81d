"""`push_to_hub` is refused before training if the hub cannot be reached or does not know the token."""

from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from loader.checks.runtime_checks import check_hub, is_hub_error
from loader.resolve.resolver import resolve


class Unreachable(HfHubHTTPError):
    """What the hub's client raises without a network has no answer of the hub."""

    def __init__(self):
        Exception.__init__(self, "Name or service not known")
        self.response = None


class Refused(Unreachable):
    def __init__(self):
        super().__init__()
        self.response = SimpleNamespace(status_code=401)


@pytest.mark.parametrize(
    ("error", "word"), [(Unreachable(), "reached"), (Refused(), "401"), (LocalTokenNotFoundError("none"), "hub_token")]
)
def test_a_hub_that_cannot_take_the_model(in_root, monkeypatch, error, word):
    def whoami(self, token):
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "whoami", whoami)
    run, args = resolve(None, ["push_to_hub=true"]), SimpleNamespace(push_to_hub=True, process_index=0, hub_token=None)
    with pytest.raises(ValueError) as raised:
        check_hub(run, args)
    assert str(raised.value).startswith("`push_to_hub: true` in --set: ") and word in str(raised.value)
    check_hub(run, SimpleNamespace(push_to_hub=False, process_index=0))
    check_hub(run, SimpleNamespace(push_to_hub=True, process_index=1))


def test_an_error_of_this_program_is_none_of_the_hub(in_root, monkeypatch):
    monkeypatch.setattr(huggingface_hub.HfApi, "whoami", lambda self, token: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        check_hub(resolve(), SimpleNamespace(push_to_hub=True, process_index=0, hub_token=None))
    assert not is_hub_error(OSError("disk")) and is_hub_error(Unreachable())
