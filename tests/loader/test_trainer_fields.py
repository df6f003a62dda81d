"""The fields read from the source are those of the imported class."""

import dataclasses
import typing

from transformers import TrainingArguments

from loader.schema.installed import REQUIRED, trainer_fields


def test_names_and_constant_defaults_equal_the_imported_class():
    imported = {field.name: field for field in dataclasses.fields(TrainingArguments) if field.init}
    read = trainer_fields()
    assert list(read) == list(imported)
    for name, each in imported.items():
        if each.default is not dataclasses.MISSING and isinstance(each.default, (int, float, str, bool)):
            expected = getattr(each.default, "value", each.default)  # enumerations: their word
            if read[name].default is not None:  # None: computed when transformers is imported
                assert read[name].default == expected, name


def test_enumerations_are_lists_of_words():
    words = typing.get_args(trainer_fields()["lr_scheduler_type"].annotation)
    assert {"linear", "cosine", "constant"} <= set(words)
    from transformers.training_args import OptimizerNames

    assert set(typing.get_args(trainer_fields()["optim"].annotation)) == {
        optimizername.value for optimizername in OptimizerNames
    }


def test_types():
    assert trainer_fields()["bf16"].annotation is bool
    assert trainer_fields()["max_grad_norm"].annotation is float
    assert REQUIRED not in [trainer_field.default for trainer_field in trainer_fields().values()]
