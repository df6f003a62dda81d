"""How far parameters are from a model's head, counted in blocks: for layer-wise learning-rate decay."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


def depths_from_head(model: nn.Module) -> dict[str, int]:
    """Return parameter name -> number of layers above it, as in BEiT (arXiv:2106.08254) and timm.

    The head and everything else behind the last block has 0, the last block 1, the block before it 2, and the
    embeddings before the first block the number of blocks + 1. Blocks are the elements of the outermost lists of
    modules. An element that is itself a list of blocks of one class is a stage: the blocks in it count, and its
    downsampling belongs to the nearest of them. Lists of a model follow each other in the order of their registration.

    Raises:
        ValueError: the model has no list of blocks.
    """
    walk = _Walk()
    walk.visit(model)
    if not walk.blocks:
        raise ValueError(
            "`layer_decay`: this model has no list of blocks, so its layers have no depth; set layer_decay to 1, and "
            "rates of its parts with param_groups"
        )
    depth_of = {key: walk.blocks + 1 - layer for key, layer in walk.layers.items()}
    depth_of |= dict.fromkeys(walk.behind, 0)
    return {name: depth_of[id(parameter)] for name, parameter in model.named_parameters()}


class _Walk:
    """Number the blocks of a model from 1, in the order of registration.

    Attributes:
        layers: `id` of a parameter -> number of its block; outside of blocks, number of those before it.
        behind: Parameters behind all blocks that have been seen so far.
    """

    def __init__(self) -> None:
        self.blocks, self.layers, self.behind = 0, {}, set()

    def visit(self, module: nn.Module) -> None:
        """Number what is outside of blocks, and the blocks of all lists inside."""
        self._number(module.parameters(recurse=False), self.blocks, is_behind=True)
        for child in module.children():
            if _is_list_of_blocks(child):
                self.behind.clear()
                for element in child:
                    self._visit_element(element)
            else:
                self.visit(child)

    def _visit_element(self, element: nn.Module) -> None:
        inner, first = _blocks_of_stage(element), self.blocks + 1
        if inner is None:
            self.blocks += 1
        for child in element.children():
            if child is not inner:
                self._number(child.parameters(), max(first, self.blocks))
                continue
            for block in inner:
                self.blocks += 1
                self._number(block.parameters(), self.blocks)
        self._number(element.parameters(recurse=False), first)

    def _number(self, parameters: Iterable[nn.Parameter], layer: int, is_behind: bool = False) -> None:
        for parameter in parameters:
            if id(parameter) not in self.layers:  # a tied weight stays where it is first
                self.layers[id(parameter)] = layer
                self.behind |= {id(parameter)} if is_behind and layer else set()


def _is_list_of_blocks(module: nn.Module) -> bool:
    """Whether a module is a list of modules that all consist of others, unlike a convolution with its norm."""
    is_list = isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module) > 0
    return is_list and all(next(item.children(), None) is not None for item in module)


def _blocks_of_stage(element: nn.Module) -> nn.Module | None:
    """The list of blocks of one class that an element has, or None if it is a block itself."""
    lists = [child for child in element.children() if _is_list_of_blocks(child)]
    return next((blocks for blocks in lists if len({type(block) for block in blocks}) == 1), None)
