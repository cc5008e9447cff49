"""How the bytes of a file become a sample: .pt, .npy and tables; reading a batch of files at once.

To add a format that stores the tensor's memory as it is: write `load(path, ID) -> Tensor` (as in npy_file.py) and
`learn(raw) -> Recogniser | None` (as `learn_npy` in file_layout.py), and a subclass of TensorFiles with its `suffix`
and `_make_reader` (as ArrayFiles). A format with a codec, such as JPEG, needs a dataset that decodes: docs/data.md.
"""
