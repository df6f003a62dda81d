"""One file for each workload of the invariants suite, found by its name.

A recipe has `MODEL` and `DATA`, the components that it covers, and `words(folder)`, which writes a small data set into
a folder and returns the words of `train.py` that name data and model: no dropout, 40 training samples. Optional:
`LORA` (`lora_module`, where `all-linear` finds nothing),
`without_noise(monkeypatch)` (turns off random numbers that a forward draws),
`inputs(folder)` (a file or folder to predict on; without it `predict.py` must refuse the workload),
`OUTPUT` (name of the file that `predict.py` writes, where its ending says the format),
`SEVERAL` (further settings, each for a run of two processes, which `without_noise` cannot reach).
"""
