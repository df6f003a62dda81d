"""Sharded optimizer state and gathered weights, against what torch gathers itself; two processes over gloo."""

import itertools
import json
import re
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_optimizer_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard

from trainer import distributed
from trainer.checkpointing import sharded_optimizer, sharded_weights
from trainer.checkpointing.trainer_io import CheckpointLoadError, checkpoint_load_errors
from trainer.serialization import state_dict_io


class Tower(nn.Module):
    """Seven rows, which two ranks share unevenly; a single row, of which one rank has none; tied weights; buffers."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.words = nn.Embedding(7, 4)
        self.norm = nn.LayerNorm(4)
        self.inner = nn.Linear(4, 4)
        self.single = nn.Linear(4, 1)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.words.weight
        self.register_buffer("scale", torch.full((2,), float(seed)))
        self.register_buffer("mask", torch.ones(3), persistent=False)

    def forward(self, ids):
        hidden = torch.tanh(self.inner(self.norm(self.words(ids))))
        return self.head(hidden).square().mean() + self.single(hidden).mean()


def groups(model):
    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    return [
        {"params": decayed, "weight_decay": 0.1},
        {"params": [each for each in model.parameters() if each.dim() < 2]},
    ]


class RowRates(torch.optim.Optimizer):
    """State of other shapes than the weights: a vector, sharded like their rows, and numbers."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self):
        for param_group in self.param_groups[0]["params"]:
            state = self.state[param_group]
            state.setdefault("count", 0)
            state["count"] += 1
            state["rows"] = (
                param_group.grad.square().flatten(1).sum(1) if param_group.dim() > 1 else param_group.grad.square()
            )
            state["size"] = torch.tensor(float(state["count"]))
            param_group.sub_(param_group.grad, alpha=0.1)


OPTIMIZERS = {
    "adamw": lambda model: torch.optim.AdamW(groups(model), lr=0.01, betas=(0.8, 0.9), foreach=True),
    "amsgrad": lambda model: torch.optim.Adam(model.parameters(), lr=0.02, amsgrad=True, foreach=False),
    "momentum": lambda model: torch.optim.SGD(groups(model), lr=0.1, momentum=0.9),
    "plain": lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
    "rows": lambda model: RowRates(model.parameters()),
}


def trained(kind, steps=3, seed=0, shard=False):
    """A model and its optimizer after some steps; `seed` decides the weights and the data."""
    model = Tower(seed)
    if shard:
        fully_shard(model.inner)
        fully_shard(model)
    optimizer = OPTIMIZERS[kind](model)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        model(torch.randint(7, (3, 5), generator=generator)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def write_part(folder, model, optimizer):
    tensors, facts = sharded_optimizer.local_state(model, optimizer)
    folder.mkdir(parents=True, exist_ok=True)
    state_dict_io.write(folder, sharded_optimizer.part_name(facts["process"], facts["processes"]), facts, tensors)


def _options(group):
    return {name: value for name, value in group.items() if name != "params"}


def of_plain(model, optimizer):
    """{parameter: state} and the groups of an optimizer that is not sharded, in torch's form."""
    names = {id(each): name for name, each in model.named_parameters()}
    state = {names[id(each)]: dict(values) for each, values in optimizer.state.items()}
    return state, [_options(group) for group in optimizer.param_groups]


def gathered(model, optimizer):
    """The same of a sharded one, as torch gathers it; on the first process only."""
    whole = get_optimizer_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return whole.get("state"), [_options(each) for each in whole.get("param_groups", ())]


def same_state(left, right):
    """Both are (state, options)."""
    assert left[1] == right[1]
    assert {name: set(values) for name, values in left[0].items()} == {n: set(v) for n, v in right[0].items()}
    for name, key in ((name, key) for name, values in left[0].items() for key in values):
        mine, other = left[0][name][key], right[0][name][key]
        same = torch.equal(mine, other) and mine.dtype == other.dtype if hasattr(mine, "dtype") else mine == other
        assert same, (name, key)


# ---- two processes ----


def together(work, folder, processes=2):
    """`work(rank, folder)` in several processes that form a group."""
    torch.multiprocessing.start_processes(_one, (work, str(folder), processes), processes, start_method="fork")


def _one(rank, work, folder, processes):
    from pathlib import Path

    torch.set_num_threads(1)
    options = {"rank": rank, "world_size": processes, "timeout": timedelta(seconds=60)}
    dist.init_process_group("gloo", init_method=f"file://{folder}/.group", **options)
    try:
        work(rank, Path(folder))
    finally:
        dist.destroy_process_group()


def save_all(rank, folder):
    for kind in OPTIMIZERS:
        model, optimizer = trained(kind, shard=True)
        write_part(folder / kind, model, optimizer)
        truth = gathered(model, optimizer)
        whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        model(torch.tensor([[1]]))  # leaves the root's weights gathered
        weights = sharded_weights.whole_weights(model, keep=rank == 0)
        dist.barrier()

        again, fresh = trained(kind, seed=1, shard=True)
        sharded_optimizer.load_local_state(again, fresh, folder / kind)
        if rank == 0:
            same_state(truth, gathered(again, fresh))
            state_dict_io.write(folder / kind, "truth", *state_dict_io.split(truth))
            assert weights.keys() == whole.keys() and all(torch.equal(weights[name], whole[name]) for name in whole)
            assert weights["head.weight"] is weights["words.weight"] and "mask" not in weights
            state_dict_io.write_tensors(folder / kind / "model.safetensors", weights)
        else:
            gathered(again, fresh)
            assert weights == {}
        dist.barrier()
        sharded_weights.load_whole_weights(again, folder / kind)
        back = sharded_weights.whole_weights(again, keep=True)
        assert all(torch.equal(back[name], load_file(folder / kind / "model.safetensors")[name]) for name in back)


def load_plain(rank, folder):
    for kind, place in itertools.product(OPTIMIZERS, ("parts", "state")):
        model, optimizer = trained(kind, seed=1, shard=True)
        if kind == "rows":
            with pytest.raises(distributed.Mismatch, match="/rows`"):
                sharded_optimizer.load_local_state(model, optimizer, folder / place / kind)
            continue
        sharded_optimizer.load_local_state(model, optimizer, folder / place / kind)
        found = gathered(model, optimizer)
        sharded_weights.load_whole_weights(model, folder / "parts" / kind)
        weights = sharded_weights.whole_weights(model, keep=rank == 0)
        if rank == 0:
            plain = trained(kind)
            same_state(of_plain(*plain), found)
            assert all(torch.equal(weights[name], value) for name, value in plain[0].state_dict().items())


@pytest.mark.slow
def test_two_processes_save_and_one_or_two_resume(tmp_path):
    together(save_all, tmp_path)
    for kind in OPTIMIZERS:
        truth = state_dict_io.read(tmp_path / kind, "truth")
        model, optimizer = trained(kind, seed=1)
        sharded_optimizer.load_local_state(model, optimizer, tmp_path / kind)
        same_state(truth, of_plain(model, optimizer))
        sharded_weights.load_whole_weights(model, tmp_path / kind)
        stored = load_file(tmp_path / kind / "model.safetensors")
        assert all(torch.equal(stored[name], value) for name, value in model.state_dict().items())


@pytest.mark.slow
def test_one_process_saves_and_two_resume(tmp_path):
    for kind in OPTIMIZERS:
        model, optimizer = trained(kind)
        write_part(tmp_path / "parts" / kind, model, optimizer)
        (tmp_path / "state" / kind).mkdir(parents=True)
        state_dict_io.write(tmp_path / "state" / kind, "optimizer", *state_dict_io.split(optimizer.state_dict()))
        kept = {name: value for name, value in model.state_dict().items() if name != "head.weight"}  # tied
        save_file(kept, tmp_path / "parts" / kind / "model.safetensors")
    together(load_plain, tmp_path)


# ---- one process ----


@pytest.mark.parametrize("rows", [0, 1, 2, 5, 7, 12])
@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_rows_are_distributed_as_torch_chunk_does(rows, processes):
    whole = torch.arange(rows * 3.0).reshape(rows, 3)
    chunks = list(whole.chunk(processes)) if rows else [whole]
    for rank in range(processes):
        mesh = SimpleNamespace(size=lambda axis: processes, get_local_rank=lambda axis, rank=rank: rank)
        place = distributed.local_slice((rows, 3), mesh, [Shard(0)])
        wanted = chunks[rank] if rank < len(chunks) else whole[:0]
        first = place.offset[0]
        assert torch.equal(whole[first : first + place.size[0]], wanted)
    assert distributed.local_slice((rows, 3), mesh, [Replicate()]).size == (rows, 3)


@pytest.mark.parametrize(("before", "after"), list(itertools.product([1, 2, 3, 4], [1, 2, 3, 5])))
def test_parts_are_resharded_for_another_number_of_processes(before, after):
    whole = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))

    def slices(count):
        for rank in range(count):
            mesh = SimpleNamespace(size=lambda axis: count, get_local_rank=lambda axis, rank=rank: rank)
            yield distributed.local_slice((7, 3), mesh, [Shard(0)])

    def cut(place):
        return whole[place.offset[0] :][: place.size[0]]

    stored = sharded_optimizer.StoredTensor({place: cut(place) for place in slices(before)})
    for place in slices(after):
        assert torch.equal(sharded_optimizer._assembled(stored, place, "x"), cut(place))
    if before > 1:
        stored.pieces.popitem()
        with pytest.raises(distributed.Mismatch, match="`x`"):
            sharded_optimizer._assembled(stored, distributed.whole_slice((7, 3)), "x")


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_unsharded_optimizer_resumes_bit_for_bit(tmp_path, kind):
    model, optimizer = trained(kind)
    write_part(tmp_path, model, optimizer)
    fresh, other = trained(kind, seed=1)
    sharded_optimizer.load_local_state(fresh, other, tmp_path)
    same_state(of_plain(model, optimizer), of_plain(fresh, other))
    fresh.load_state_dict(model.state_dict())
    for each, trains in ((model, optimizer), (fresh, other)):
        each(torch.tensor([[1, 2]])).backward()
        trains.step()
    assert all(torch.equal(fresh.state_dict()[name], value) for name, value in model.state_dict().items())


def test_names_are_those_of_the_model_itself():
    assert distributed.plain_name("module.blocks.0.mlp._orig_mod.up._checkpoint_wrapped_module.weight") == (
        "blocks.0.mlp.up.weight"
    )
    wrapped = torch.nn.ModuleDict({"module": Tower()})["module"]
    assert "inner.weight" in sharded_weights.whole_weights(wrapped, keep=True)


def edited(folder, change, name="optimizer-00001-of-00001.json"):
    facts = json.loads((folder / name).read_text())
    change(facts)
    (folder / name).write_text(json.dumps(facts))


def rename(facts):
    facts["groups"][0]["parameters"] = {"other.weight": [7, 4]}


def resize(facts):
    facts["groups"][0]["parameters"]["words.weight"] = [8, 4]


def regroup(facts):
    first, second = (group["parameters"] for group in facts["groups"])
    first |= {"norm.weight": second.pop("norm.weight")}


def forget(facts):
    facts["tensors"]["words.weight/exp_avg"] = {"shape": [9, 4], "offset": [0, 0], "cut": [0]}


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (rename, "`words.weight`"),
        (resize, "`words.weight` is 8×4"),
        (regroup, "parameter groups"),
        (forget, "`words.weight/exp_avg`"),
        (lambda facts: facts.update(optimizer="SGD"), "SGD.*AdamW"),
        (lambda facts: facts.pop("values"), "values"),
        (lambda facts: facts["tensors"].update({"gone/exp_avg": {"whole": True}}), "gone"),
        (lambda facts: facts["values"].update({"gone/exp_avg": 1}), "gone"),
        (lambda facts: facts["groups"].append(3), "int"),
    ],
)
def test_a_mismatch_is_one_line_and_changes_nothing(tmp_path, change, key):
    write_part(tmp_path, *trained("adamw"))
    edited(tmp_path, change)
    model, optimizer = trained("adamw", seed=1)
    with pytest.raises(CheckpointLoadError, match=key) as caught, checkpoint_load_errors(tmp_path):
        sharded_optimizer.load_local_state(model, optimizer, tmp_path)
    assert str(caught.value).startswith(str(tmp_path)) and "\n" not in str(caught.value)
    same_state(of_plain(model, optimizer), of_plain(*trained("adamw", seed=1)))


def test_missing_and_mixed_parts(tmp_path):
    model, optimizer = trained("adamw")

    def check_error(key):
        with pytest.raises(CheckpointLoadError, match=key), checkpoint_load_errors(tmp_path):
            sharded_optimizer.load_local_state(model, optimizer, tmp_path)

    check_error("optimizer.json")
    write_part(tmp_path, model, optimizer)
    assert sharded_optimizer.has_parts(tmp_path)
    tensors, facts = tmp_path / "optimizer-00001-of-00001.safetensors", tmp_path / "optimizer-00001-of-00001.json"
    tensors.write_bytes(tensors.read_bytes()[:-40])
    check_error("SafetensorError")
    tensors.unlink()
    check_error("optimizer-00001-of-00001.safetensors")
    facts.rename(facts.with_name("optimizer-00002-of-00002.json"))
    check_error("optimizer-00001-of-00002.json")


def test_state_that_cannot_be_sharded(tmp_path):
    model, optimizer = trained("adamw")
    optimizer.state[model.single.bias]["inner"] = [torch.ones(2)]
    with pytest.raises(ValueError, match="`single.bias/inner`"):
        sharded_optimizer.local_state(model, optimizer)
    optimizer.state[model.single.bias]["inner"] = {1, 2}
    with pytest.raises(ValueError, match="`single.bias/inner`"):
        sharded_optimizer.local_state(model, optimizer)


def test_weights_in_several_files(tmp_path):
    model = Tower()
    state = {name: value for name, value in model.state_dict().items() if name != "words.weight"}
    names = sorted(state)
    for number, part in enumerate((names[:3], names[3:])):
        save_file({name: state[name] for name in part}, tmp_path / f"model-{number}.safetensors")
    where = {name: f"model-{int(name in names[3:])}.safetensors" for name in names}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    other = Tower(seed=1)
    sharded_weights.load_whole_weights(other, tmp_path)
    assert all(torch.equal(other.state_dict()[name], value) for name, value in model.state_dict().items())
    assert other.head.weight is other.words.weight


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "..", ".safetensors"])
def test_an_index_names_files_of_its_folder_only(tmp_path, name):
    folder = tmp_path / "run"
    folder.mkdir()
    save_file(Tower().state_dict() | {"head.weight": torch.zeros(7, 4)}, tmp_path / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"inner.weight": name}}))
    with pytest.raises(ValueError, match=re.escape(repr(name))):
        sharded_weights.load_whole_weights(Tower(), folder)


def test_weights_that_do_not_fit(tmp_path):
    whole = {name: value.clone() for name, value in Tower().state_dict().items()}

    def check_error(key):
        with pytest.raises(CheckpointLoadError, match=key), checkpoint_load_errors(tmp_path):
            sharded_weights.load_whole_weights(Tower(), tmp_path)

    def check_changed(key, **changes):
        save_file({n: v for n, v in (whole | changes).items() if v is not None}, tmp_path / "model.safetensors")
        check_error(key)

    check_error("model.safetensors")
    check_changed("`inner.weight`", **{"inner.weight": None})
    check_changed("`more`", more=torch.zeros(1))
    check_changed("`inner.weight` is 4×3", **{"inner.weight": torch.zeros(4, 3)})
    (tmp_path / "model.safetensors").write_bytes(b"truncated")
    check_error("SafetensorError")
