"""Vision-language-action policies: a pretrained vision-language model and a head that predicts chunks of actions.

    model: {name: vla, head: flow}      with model_name_or_path: a model of AutoModelForImageTextToText
    model: {name: vla, config: {model_type: smolvlm, vision_config: {…}, text_config: {…}}}
                                        new, with random weights
    model: {name: vla, config: {model_type: smolvlm, vision_config: {…}}}
                                        with model_name_or_path: a causal language model, which becomes its text model

Importing this needs neither torch nor transformers; `build` and `load` bring them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.vla.config import Config

if TYPE_CHECKING:
    from models.vla.network import VLA

PROCESS_KEYS: frozenset[str] = frozenset(
    {
        "model_name_or_path",
        "cache_dir",
        "trust_remote_code",
        "use_reasoning",
        "use_prev_subtask",
        "select_seg_token_mask",
        "llm_loss_weight",
        "is_multimodal",
    }
)

VLM = r"^backbone\.vlm\."
MERGERS = r"merger|deepstack_merger_list"  # the projector of Qwen's models is inside their vision tower

# Part name -> regular expression over parameter and module names.
PARTS: dict[str, str] = {
    "backbone": r"^backbone(\.|$)",
    "vision_tower": VLM + rf"((vision_model|vision_tower)(\.|$)|visual\.(?!({MERGERS})(\.|$)))",
    "projector": VLM + rf"(connector|multi_modal_projector|visual\.({MERGERS}))(\.|$)",
    "llm": VLM + r"(language_model|text_model)(\.|$)",
    "embeddings": VLM + r"(language_model|text_model)\.embed_tokens(\.|$)",
    "lm_head": r"^backbone\.lm_head(\.|$)",
    "action_expert": r"^(action_head|state_proj)(\.|$)",
    "head": r"^(action_head|state_proj)(\.|$)",  # the same part under the name that all networks use
}


def build(config: Config, process: Any) -> VLA:
    """Build a policy for the data's dims, with the pretrained weights at `process.model_name_or_path`.

    Where `model_name_or_path` is a SmolVLA that LeRobot saved, its weights and settings are taken.

    Raises:
        ValueError: a dim is missing, neither `config` nor a path, nothing found at the path, a backbone of an unknown
            kind, or data with more tokens than the language model knows.
    """
    from models.lerobot_weights import policy_folder, starts_from_lerobot

    if starts_from_lerobot(process) and policy_folder(process) is not None:
        from models.vla import lerobot

        return lerobot.build(config, process)
    from models.vla.loading import build_policy

    return build_policy(config, process)


def load(folder: str | Path) -> VLA:
    """Load the policy saved in `folder`, in evaluation mode, without access to a hub."""
    from models.pretrained import load_checkpoint
    from models.vla.network import VLA

    return load_checkpoint(VLA, folder)


def load_base(place: str, folder: Path, cache_dir: str | None, trust_remote_code: bool) -> VLA:
    """Load the backbone at `place` into the policy whose adapter is in `folder`; the adapter has all other weights."""
    from models.vla.loading import load_for_adapter

    return load_for_adapter(place, folder, cache_dir, trust_remote_code)
